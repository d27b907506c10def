"""To the Hub: a repository with a sidecar, its card, its recipe and its figures.

In: a sidecar and a repository's id. Out: one commit (`push`), with a card that is updated and never clobbered (`card`).
"""
