"""What one pass over texts of the training length tells of every layer.

In: a model and windows of L tokens. Out: a `LayerMeasurement` a layer (`measuring`): the distribution of delta in each
channel (`sketch`, on the bins of `histogram`), its decay and mean distance (`mamba2` has the formulas by head), and the
g that the papers' procedure fits (`published_fit`).
"""
