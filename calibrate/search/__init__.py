"""Measurements -> a method, and its settings, for each length.

In: measurements, held-out windows, a recipe. Out: the bands of a sidecar. What can be done at a length is a
`candidates.Candidate`; `tables` turns it into thresholds, `scoring` scores it on held-out text (by the losses and
passkeys of `tasks`), `search` finds the best, and `choice` decides on fresh text, beyond the doubt of `intervals`.
theta is picked in `search.Search`, the channels it calls global stand in `channels`.
"""
