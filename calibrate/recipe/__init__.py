"""Every choice of a calibration, written down.

In: a recipe's name or a YAML file. Out: a checked `Recipe` (`recipe`, by `schema`), and the papers' rows of a model
(`published`).
"""
