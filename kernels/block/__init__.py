"""One token through a whole Mamba-1 block on a CPU: norm, projections, convolution, scan and residual in one call.

In: the residual and the block's states. Out: both, moved on. The loops are those of the operations' own rooms; what is
saved is the way from one to the next, which costs as much as half of the arithmetic once the weights that a product
reads have swept the interpreter out of the caches. The oracle is the same step, operation by operation.
"""
