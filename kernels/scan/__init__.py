"""Mamba-1's selective scan and its one-token step, filtered and gathered.

In: x, delta, A, B, C (and D, z), the filter's threshold and scale, the positions to read, a state. Out: y and the last
state. `cpu` runs `cpu_loops` (sixteen channels a vector: `cpu_vector`), `triton` launches `triton_kernel` as
`triton_plan` lays it out, and `triton_step`.
"""
