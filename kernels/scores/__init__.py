"""DeciMamba's score of each token.

In: delta, its bias, a weight a channel. Out: one float32 a token. `cpu` runs `cpu_loops`, `triton` launches
`triton_kernel`.
"""
