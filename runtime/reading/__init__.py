"""A prompt -> logits and a state.

In: token ids in any batch and padding (`prompts`, `padding`), a model's layers, a sidecar. Out: logits, positions and a
`State` that goes on. Which plan a prompt gets stands in `plans` (and `growth`, for text without an end), the loop over
its chunks in `prefill`, a chunk's way through the layers in `forward`, decimation's running selection in `reservoir`.
"""
