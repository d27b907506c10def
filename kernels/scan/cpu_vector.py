"""The scan's step for one token and sixteen channels, written as explicit vector code.

LLVM will not keep sixteen channels in one register through numba's loops: it cannot tell that the arrays do not
overlap, and checks again at every state. Written as vectors, a state costs one exp2 (a polynomial), three
multiply-adds, two loads and a store for all sixteen channels. Machines with narrower vectors split them.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
LOG2E, LN2 = math.log2(math.e), math.log(2.0)
_F32, _I32 = ir.FloatType(), ir.IntType(32)
_VEC, _IVEC = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
# Taylor coefficients of 2^f, highest first: relative error below 1e-7 on [-0.5, 0.5].
_EXP2 = [LN2**k / math.factorial(k) for k in range(7, -1, -1)]
# log(1 + u) = 2 atanh(s), s = u / (2 + u) <= 1/3: the odd series 1 + s^2/3 + s^4/5 + ..., highest first.
_ATANH = [1.0 / k for k in range(15, 0, -2)]


def _splat(value):
    return ir.Constant(_VEC, [ir.Constant(_F32, value)] * LANES)


def _call(builder, name, *args):
    """A vector form of an LLVM intrinsic; llvmlite's own helpers take scalars only."""
    kind = ir.FunctionType(_VEC, [_VEC] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32"), args)


def _polynomial(builder, x, coefficients):
    p = _splat(coefficients[0])
    for coefficient in coefficients[1:]:
        p = _call(builder, "fma", p, x, _splat(coefficient))
    return p


def _larger(builder, x, bound):
    """max(x, bound) in one instruction; NaN stays NaN, where llvm.maxnum would drop it."""
    return builder.select(builder.fcmp_ordered("<", x, _splat(bound)), _splat(bound), x)


def _exp2(builder, x):
    """2^x for x <= 0: round to an integer i, polynomial in f = x - i, 2^i from its bits; 0 below 2^-126.

    NaN stays NaN: whatever i is, f is NaN.
    """
    x = _larger(builder, x, -127.0)
    i = builder.fptosi(builder.fsub(x, _splat(0.5)), _IVEC)
    p = _polynomial(builder, builder.fsub(x, builder.sitofp(i, _VEC)), _EXP2)

    def integers(value):
        return ir.Constant(_IVEC, [ir.Constant(_I32, value)] * LANES)

    power = builder.shl(builder.add(i, integers(127)), integers(23))
    return builder.fmul(p, builder.bitcast(power, _VEC))


def _exp_minus_abs(builder, x):
    return _exp2(builder, builder.fmul(_call(builder, "fabs", x), _splat(-LOG2E)))


def _softplus(builder, x):
    """max(x, 0) + log1p(e^-|x|)."""
    u = _exp_minus_abs(builder, x)
    s = _divide(builder, u, builder.fadd(u, _splat(2.0)))
    series = _polynomial(builder, builder.fmul(s, s), _ATANH)
    log1p = builder.fmul(builder.fadd(s, s), series)
    return builder.fadd(_larger(builder, x, 0.0), log1p)


def _silu(builder, x):
    """x / (1 + e^-x), from e^-|x| so that nothing overflows."""
    e = _exp_minus_abs(builder, x)
    top = builder.select(builder.fcmp_ordered(">=", x, _splat(0.0)), _splat(1.0), e)
    return builder.fmul(x, _divide(builder, top, builder.fadd(e, _splat(1.0))))


def _divide(builder, top, bottom):
    """top / bottom, neither infinite: promising that, LLVM takes a reciprocal and a Newton step. NaN stays NaN."""
    return builder.fdiv(top, bottom, flags=("ninf", "nsz", "arcp", "contract", "afn", "reassoc"))


def _broadcast(builder, value):
    undefined = ir.Constant(_VEC, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(_IVEC, [ir.Constant(_I32, 0)] * LANES))


@intrinsic
def token(
    context, h, a2, per_channel, nothing, x, x_at, delta, delta_at, z, z_at, B, B_at, C, C_at, y, y_at,
    seen, use_softplus, skipping, gated,
):  # fmt: skip
    """One token, sixteen channels: delta' = 0 where softplus(delta + bias) <= threshold, else scale times it;
    h_n = 2^(delta' a2_n) h_n + delta' x B_n; y = (sum_n h_n C_n + D x) silu(z). Not seen: delta', x and B are 0 for h.

    h, a2: (N, 16) float32, a2 = A log2(e); per_channel: (4, 16) bias, threshold (NaN: none), scale, D; nothing: N
    zeros; seen, use_softplus, skipping (D is given), gated: bool. The other arrays are any arrays of float32 whose last
    dimension is side by side, *_at the offset in elements of the first value read.
    """
    signature = types.void(
        h, a2, per_channel, nothing, x, x_at, delta, delta_at, z, z_at, B, B_at, C, C_at, y, y_at,
        seen, use_softplus, skipping, gated,
    )  # fmt: skip

    def codegen(context, builder, signature, args):
        def array(k):
            return context.make_array(signature.args[k])(context, builder, args[k])

        states, decays, constants, nothing = array(0), array(1).data, array(2).data, array(3).data
        x, delta, z, B, C, y = (array(k).data for k in range(4, 16, 2))
        x_at, delta_at, z_at, B_at, C_at, y_at = args[5:16:2]
        seen, use_softplus, skipping, gated = args[16:]

        def vector(pointer, offset):
            return builder.bitcast(builder.gep(pointer, [offset], source_etype=_F32), _VEC.as_pointer())

        def load(pointer, offset):
            return builder.load(vector(pointer, offset), align=4, typ=_VEC)

        def scalar(pointer, offset):
            return builder.load(builder.gep(pointer, [offset], source_etype=_F32), typ=_F32)

        def row(k):
            return ir.Constant(ir.IntType(64), k * LANES)

        bias, threshold, scale, skip = (load(constants, row(k)) for k in range(4))
        x_value = load(x, x_at)
        raw = builder.fadd(load(delta, delta_at), bias)
        positive = builder.select(use_softplus, _softplus(builder, raw), raw)
        dropped = builder.fcmp_ordered("<=", positive, threshold)
        step = builder.select(dropped, _splat(0.0), builder.fmul(positive, scale))
        step = builder.select(seen, step, _splat(0.0))
        driven = builder.select(seen, builder.fmul(step, x_value), _splat(0.0))
        B = builder.select(seen, builder.gep(B, [B_at], source_etype=_F32), nothing)

        skipped = builder.select(skipping, builder.fmul(skip, x_value), _splat(0.0))
        total = cgutils.alloca_once_value(builder, skipped)
        count = cgutils.unpack_tuple(builder, states.shape, 2)[0]
        with cgutils.for_range(builder, count) as loop:
            n = loop.index
            offset = builder.mul(n, ir.Constant(n.type, LANES))
            decay = _exp2(builder, builder.fmul(step, load(decays, offset)))
            c = scalar(C, builder.add(C_at, n))
            driven_b = builder.fmul(driven, _broadcast(builder, scalar(B, n)))
            state = _call(builder, "fma", decay, load(states.data, offset), driven_b)
            builder.store(state, vector(states.data, offset), align=4)
            so_far = builder.load(total, typ=_VEC)
            builder.store(_call(builder, "fma", state, _broadcast(builder, c), so_far), total)
        out = builder.load(total, typ=_VEC)
        with builder.if_else(gated) as (then, otherwise):
            with then:
                gate = _silu(builder, load(z, z_at))
                builder.store(builder.fmul(out, gate), vector(y, y_at), align=4)
            with otherwise:
                builder.store(out, vector(y, y_at), align=4)
        return context.get_dummy_value()

    return signature, codegen
