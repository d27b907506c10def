"""The inner product of a weight's row and a vector, written as explicit vector code.

One row after the other, as the weight lies in memory, fetched ahead: left to itself LLVM asks for no line before it
needs it, and the hardware's own prefetch stops at every page. bfloat16 is the upper half of a float32: a shift.
Machines with narrower vectors split them.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES, SUMS = 16, 4  # values a vector, and sums that do not wait for one another
AHEAD = 4096  # bytes
LINE = 64
_F32, _I8, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VEC, _IVEC = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_ZERO = ir.Constant(_VEC, [ir.Constant(_F32, 0.0)] * LANES)
_HALF = ir.Constant(_IVEC, [ir.Constant(_I32, 16)] * LANES)


def _widened(builder, value):
    """A vector (or one) of float32, or of bfloat16's bits, as float32."""
    if value.type in (_F32, _VEC):
        return value
    wide, half, found = (_IVEC, _HALF, _VEC) if isinstance(value.type, ir.VectorType) else (_I32, _I32(16), _F32)
    return builder.bitcast(builder.shl(builder.zext(value, wide), half), found)


def _function(builder, name, result, *arguments):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


@intrinsic
def dot(context, weight, weight_at, x, x_at, K):
    """sum_k weight[weight_at + k] x[x_at + k] over K values, float32.

    weight: an array of float32, or of int16 that are bfloat16's bits; x: of float32; *_at: offsets in elements.
    """
    signature = types.float32(weight, weight_at, x, x_at, K)

    def codegen(context, builder, signature, args):
        stored = _F32 if signature.args[0].dtype == types.float32 else _I16
        size = 4 if stored == _F32 else 2
        weight, x = (context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 2))
        weight_at, x_at, count = args[1], args[3], args[4]
        fma = _function(builder, f"llvm.fma.v{LANES}f32", _VEC, _VEC, _VEC, _VEC)
        byte = _I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        total = _function(builder, f"llvm.vector.reduce.fadd.v{LANES}f32", _F32, _F32, _VEC)

        def at(pointer, offset, kind):
            return builder.gep(pointer, [offset], source_etype=kind)

        def product(k, so_far):
            """Sixteen products from place k on, added to a vector of sums."""
            kind = ir.VectorType(stored, LANES)
            one = builder.bitcast(at(weight, builder.add(weight_at, k), stored), kind.as_pointer())
            values = _widened(builder, builder.load(one, align=size, typ=kind))
            other = builder.bitcast(at(x, builder.add(x_at, k), _F32), _VEC.as_pointer())
            return builder.call(fma, [values, builder.load(other, align=4, typ=_VEC), so_far])

        def place(start, index, step):
            return builder.add(start, builder.mul(index, _I64(step)))

        sums = [cgutils.alloca_once_value(builder, _ZERO) for _ in range(SUMS)]
        wide = builder.udiv(count, _I64(LANES * SUMS))
        with cgutils.for_range(builder, wide) as loop:
            k = place(_I64(0), loop.index, LANES * SUMS)
            for byte_at in range(AHEAD, AHEAD + LANES * SUMS * size, LINE):
                ahead = builder.add(builder.add(weight_at, k), _I64(byte_at // size))
                line_ahead = builder.bitcast(at(weight, ahead, stored), byte)
                builder.call(prefetch, [line_ahead, _I32(0), _I32(3), _I32(1)])  # to be read, kept close, data
            for u, s in enumerate(sums):
                builder.store(product(builder.add(k, _I64(u * LANES)), builder.load(s, typ=_VEC)), s)
        done = builder.mul(wide, _I64(LANES * SUMS))
        narrow = builder.udiv(builder.sub(count, done), _I64(LANES))
        with cgutils.for_range(builder, narrow) as loop:
            builder.store(product(place(done, loop.index, LANES), builder.load(sums[0], typ=_VEC)), sums[0])
        done = builder.add(done, builder.mul(narrow, _I64(LANES)))
        a, b, c, d = (builder.load(s, typ=_VEC) for s in sums)
        whole = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
        found = cgutils.alloca_once_value(builder, builder.call(total, [_F32(0.0), whole], fastmath=("reassoc",)))
        with cgutils.for_range(builder, builder.sub(count, done)) as loop:
            k = builder.add(done, loop.index)
            value = _widened(builder, builder.load(at(weight, builder.add(weight_at, k), stored), typ=stored))
            other = builder.load(at(x, builder.add(x_at, k), _F32), typ=_F32)
            builder.store(builder.fadd(builder.load(found, typ=_F32), builder.fmul(value, other)), found)
        return builder.load(found, typ=_F32)

    return signature, codegen
