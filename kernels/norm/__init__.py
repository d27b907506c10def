"""The norm in front of every layer, with the residual's addition before it, the gated norm behind Mamba-2's scan, and
Falcon-Mamba's norms within a layer.

In: the residual, what a layer adds to it, y and z, and the norm's weight. Out: what the layer, or its last projection,
reads. `cpu` runs `cpu_loops`, one pass over the residual where torch takes eight; `triton` a kernel of `triton_kernel`.
"""
