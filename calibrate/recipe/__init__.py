"""Every choice of a calibration, written down.

In: a recipe's name or a YAML file. Out: a checked `Recipe` (`recipe`; `refused` says what is wrong), and the
papers' rows of a model (`published`).
"""
