"""A run's stages in order: `texts`, `measure`, `search`, `decide`, `write`.

In: a `job.Job`, which stays the same throughout. Out: a `write.Calibration`. Each stage is one function from the value
that the stage before made to its own, which carries on what later ones need and the `record` that ends in the sidecar.
`resume` opens the journal that the middle three share; `published` has what takes the place of a search where there is
nothing to choose.
"""
