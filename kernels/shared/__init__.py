"""What the operations share; it imports none of them.

In: the arguments of a public function. Out: a refusal (`arguments`) or the module that runs it (`dispatch`), on the
tensors' GPU. For the oracles, delta with the filter (`reference`); for numba's loops `cpu_arrays`, `cpu_compile`,
`cpu_cache`, `cpu_math`; for Triton `triton_launch`, `triton_tiles`, `triton_math`.
"""
