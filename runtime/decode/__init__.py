"""One token after the other: what a step costs beyond its arithmetic, and how that is saved."""
