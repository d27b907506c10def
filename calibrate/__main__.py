"""`python -m longscan.calibrate` is the `calibrate` command."""

from .cli import main

if __name__ == "__main__":
    main()
