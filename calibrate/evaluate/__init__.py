"""How well a sidecar reads, on any text: `calibrate eval`, and EleutherAI's harness.

In: a model, a sidecar, texts or tasks. Out: rows of values with their errors (`evaluate`), or the harness's results.
"""
