"""Every choice of a calibration, written down.

In: a recipe's name or a YAML file. Out: a checked `Recipe` (`recipe`, `refused` saying what is wrong), and the papers' rows of a model
(`published`).
"""
