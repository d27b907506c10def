"""The matrix product of a few tokens, as decoding needs it.

In: 1 to 4 vectors and a weight. Out: their products. `cpu` runs `cpu_loops` on all threads, whose inner product is
`cpu_vector`; everything else, more tokens among it, is torch's, which is the oracle, too.
"""
