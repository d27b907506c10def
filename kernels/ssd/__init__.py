"""Mamba-2's scan (state-space duality) and its one-token step, filtered and gathered.

In: x in heads, one delta and A a head, B and C by group, the filter, the positions to read, a state. Out: y and the
last state. `cpu` multiplies chunks as matrices in torch, `triton` launches the three passes of `triton_kernel`.
"""
