"""Vectorisable float32 exp, log1p, softplus and silu for numba: polynomials, no libm calls, no branches."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_f, _i = np.float32, np.int32
# All of LLVM's fast-math flags but nnan and ninf: with those a NaN or an infinity may come out as any number.
FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}
LOG2E = _f(1.4426950408889634)
LN2 = _f(0.6931471805599453)


@intrinsic
def as_float(context, bits):
    """Reinterpret an int32 as a float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit(inline="always", fastmath=FAST)
def exp2_negative(x):
    """2^x for x <= 0, relative error 1e-7: round to an integer i, polynomial on [-0.5, 0.5], 2^i from its bits.

    0 below 2^-126. NaN stays NaN: max returns its first argument then, and whatever i is, f is NaN.
    """
    clamped = max(x, _f(-127.0))
    i = _i(clamped - _f(0.5))
    f = clamped - _f(i)
    p = _f(1.5252734e-5)
    p = p * f + _f(1.5403530e-4)
    p = p * f + _f(1.3333558e-3)
    p = p * f + _f(9.6181291e-3)
    p = p * f + _f(5.5504109e-2)
    p = p * f + _f(2.4022651e-1)
    p = p * f + _f(6.9314718e-1)
    p = p * f + _f(1.0)
    return p * as_float((i + _i(127)) << _i(23))


@njit(inline="always", fastmath=FAST)
def log1p_unit(u):
    """log(1 + u) for 0 <= u <= 1: s = u / (2 + u), the odd series of 2 atanh(s), |s| <= 1/3."""
    s = u / (_f(2.0) + u)
    q = s * s
    p = _f(1.0 / 15.0)
    p = p * q + _f(1.0 / 13.0)
    p = p * q + _f(1.0 / 11.0)
    p = p * q + _f(1.0 / 9.0)
    p = p * q + _f(1.0 / 7.0)
    p = p * q + _f(1.0 / 5.0)
    p = p * q + _f(1.0 / 3.0)
    p = p * q + _f(1.0)
    return _f(2.0) * s * p


@njit(inline="always", fastmath=FAST)
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|)."""
    return max(x, _f(0.0)) + log1p_unit(exp2_negative(-abs(x) * LOG2E))


@njit(inline="always", fastmath=FAST)
def silu(x):
    """x / (1 + e^-x), from e^-|x| so that nothing overflows."""
    e = exp2_negative(-abs(x) * LOG2E)
    top = _f(1.0) if x >= _f(0.0) else e
    return x * top / (_f(1.0) + e)
