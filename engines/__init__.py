"""The filter inside inference engines of others: one band of a sidecar, as cuts on raw delta.

In: a sidecar, a length, and the checkpoint an engine serves. Out: a cut a layer and channel, and the layer that a mixer
in the engine's memory is (`band`); the plug-in that applies it in vLLM (`vllm`). docs/engines.md has the rule itself.
"""
