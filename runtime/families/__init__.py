"""The arithmetic of one layer, family by family: Mamba-1 with Falcon-Mamba, Mamba-2.

In: a layer's hidden states, its conv and ssm state, its plan. Out: what is added to the residual, and the new states.
`load` fills a layer with tensors, `attach` with another library's modules; the equations stand here once.
"""
