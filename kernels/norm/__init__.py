"""The norm in front of every layer.

In: the residual and the norm's weight. Out: what the layer reads. `cpu` runs `cpu_loops`, one pass over the residual
where torch takes eight; `triton` the kernel of `triton_kernel`, the same.
"""
