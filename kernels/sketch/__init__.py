"""Histograms of delta on a GPU, for calibration.

In: columns of delta and their grid. Out: counts and mass, the same integers as the torch form in
`calibrate/measure/histogram.py`, which is the oracle and the CPU form. Kernel and launch stand in `triton`.
"""
