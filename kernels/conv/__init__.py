"""The causal depthwise convolution and silu before a scan.

In: x, the taps, the inputs before x. Out: y and the last W-1 inputs. `cpu` runs `cpu_loops`, `triton` launches
`triton_kernel`.
"""
