"""Scalar functions of the Triton kernels, float32 in and out.

Written for the issue slots they cost. `/`, tl.exp, tl.log2 and tl.sigmoid carry range fix-ups of several instructions,
the fast forms of libdevice are absent from the interpreter and from AMD; tl.exp2 and tl.rsqrt are one instruction.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
ALL = tl.constexpr(tl.PropagateNan.ALL)  # of tl.maximum: by default it drops NaN


@triton.jit
def softplus(x):
    """log(1 + e^x) = max(x, 0) + u P(u), u = e^-|x|; P is the degree-7 minimax fit of log1p(u)/u on [0, 1].

    Relative error 6e-7 for |x| <= 4, small deltas too, where log(1 + u) would lose the digits of u; further down it
    grows with |x|, as the product x log2(e) is rounded: 4e-6 at -80.
    """
    u = tl.exp2(tl.abs(x) * -LOG2E)
    p = u * -0.00853920409 + 0.0440896161
    p = p * u - 0.107681691
    p = p * u + 0.1774524
    p = p * u - 0.244954623
    p = p * u + 0.332754797
    p = p * u - 0.499974054
    p = p * u + 0.999999806
    return p * u + tl.maximum(x, 0.0)


@triton.jit
def silu(x):
    """x / (1 + e^-x), the quotient as two factors of rsqrt(1 + e^-x): 0 where e^-x overflows, as it should be."""
    r = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))
    return x * r * r
