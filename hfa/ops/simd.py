"""Sixteen floats as one value inside Numba kernels.

Numba leaves vectorising to LLVM, which gives up where arrays might overlap or a sum crosses a loop: most of what
a recurrence does. These few operations say it outright; they become one instruction with AVX-512 and a few
without. Kernels take addresses (``tensor.data_ptr()``), so that one compiled version serves every layout.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from torch import Tensor

WIDTH = 16
REORDERED = {"reassoc", "contract", "nsz", "arcp"}  # for sums in any order, where NaN and infinity have to stay
_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_INTEGERS = ir.VectorType(ir.IntType(32), WIDTH)


class LanesType(types.Type):  # type: ignore[misc]
    """Numba's name for sixteen floats."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = LanesType()


@register_model(LanesType)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _VECTOR)


def suits(*tensors: Tensor) -> bool:
    """Whether the kernels can take these tensors: float32 on the CPU, the last dimension in whole vectors."""
    if torch.is_autocast_enabled("cpu"):
        return False
    return all(x.dtype == torch.float32 and x.is_cpu and x.shape[-1] % WIDTH == 0 for x in tensors)


def tracked(*tensors: Tensor | None) -> bool:
    """Whether autograd or the compiler has to see an operator, rather than the kernel alone."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return True
    return torch.compiler.is_compiling()


def _pointer(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    start = builder.add(address, builder.mul(offset, ir.Constant(offset.type, 4)))
    return builder.inttoptr(start, kind.as_pointer())


@intrinsic
def load(typing_context: Any, address: Any, offset: Any) -> Any:
    """Sixteen floats from the `offset`-th on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(builder, arguments[0], arguments[1], _VECTOR), align=4)

    return lanes(types.intp, types.intp), generate


@intrinsic
def store(typing_context: Any, address: Any, offset: Any, value: Any) -> Any:
    """Write sixteen floats from the `offset`-th on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _pointer(builder, arguments[0], arguments[1], _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, lanes), generate


@intrinsic
def prefetch(typing_context: Any, address: Any, offset: Any) -> Any:
    """Start to bring the `offset`-th float into the cache; it may lie beyond what there is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        place = _pointer(builder, arguments[0], arguments[1], byte)
        builder.call(function, [place, *(ir.Constant(number, n) for n in (0, 3, 1))])  # to read, every level, data
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def one(typing_context: Any, address: Any, offset: Any) -> Any:
    """The `offset`-th float, sixteen times."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, builder.load(_pointer(builder, arguments[0], arguments[1], ir.FloatType())))

    return lanes(types.intp, types.intp), generate


@intrinsic
def put(typing_context: Any, address: Any, offset: Any, value: Any) -> Any:
    """Write one float at the `offset`-th."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _pointer(builder, arguments[0], arguments[1], ir.FloatType()))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), generate


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """One float, sixteen times."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0])

    return lanes(types.float32), generate


@intrinsic
def total(typing_context: Any, x: Any) -> Any:
    """The sum of the sixteen."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.FloatType(), [ir.FloatType(), _VECTOR]),
            f"llvm.vector.reduce.fadd.v{WIDTH}f32",
        )
        return builder.call(function, [ir.Constant(ir.FloatType(), 0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(lanes), generate


@intrinsic
def first(typing_context: Any, x: Any) -> Any:
    """The first of the sixteen."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.extract_element(arguments[0], ir.Constant(ir.IntType(32), 0))

    return types.float32(lanes), generate


@intrinsic
def greatest(typing_context: Any, x: Any) -> Any:
    """The greatest of the sixteen."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [_VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fmax.v{WIDTH}f32")
        return builder.call(function, arguments)

    return types.float32(lanes), generate


@intrinsic
def above(typing_context: Any, x: Any, y: Any) -> Any:
    """Bit i is set where lane i of x is greater than that of y."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered(">", *arguments), ir.IntType(WIDTH))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(lanes, lanes), generate


@intrinsic
def where(typing_context: Any, bits: Any, x: Any, y: Any) -> Any:
    """The lanes of x where bits are set, of y elsewhere."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.trunc(arguments[0], ir.IntType(WIDTH))
        mask = builder.bitcast(bits, ir.VectorType(ir.IntType(1), WIDTH))
        return builder.select(mask, arguments[1], arguments[2])

    return lanes(types.int64, lanes, lanes), generate


def _of_bits(name: str, *more: ir.Constant) -> Any:
    """An operation of LLVM's own on 64 bits."""

    def declare(typing_context: Any, bits: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64), *(constant.type for constant in more)])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.i64")
            return builder.call(function, [*arguments, *more])

        return types.int64(types.int64), generate

    return declare


@intrinsic
def count(typing_context: Any, bits: Any) -> Any:
    """How many bits are set."""
    return _of_bits("ctpop")(typing_context, bits)


@intrinsic
def lowest(typing_context: Any, bits: Any) -> Any:
    """The place of the lowest bit that is set; one must be."""
    return _of_bits("cttz", ir.Constant(ir.IntType(1), 1))(typing_context, bits)


@intrinsic
def _power_of_two(typing_context: Any, x: Any) -> Any:
    """2 to the whole number that each lane holds, by writing it into the exponent."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bias, shift = (ir.Constant(_INTEGERS, [n] * WIDTH) for n in (127, 23))
        exponent = builder.add(builder.fptosi(arguments[0], _INTEGERS), bias)
        return builder.bitcast(builder.shl(exponent, shift), _VECTOR)

    return lanes(lanes), generate


@intrinsic
def _floor(typing_context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.floor.v{WIDTH}f32")
        return builder.call(function, arguments)

    return lanes(lanes), generate


def _chosen(comparison: str) -> Any:
    """x in the lanes where it compares so to y, and y in the others."""

    def declare(typing_context: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, *arguments), *arguments)

        return lanes(lanes, lanes), generate

    return declare


@intrinsic
def least(typing_context: Any, x: Any, y: Any) -> Any:
    """The lesser of each lane; y where one is NaN."""
    return _chosen("<")(typing_context, x, y)


@intrinsic
def most(typing_context: Any, x: Any, y: Any) -> Any:
    """The greater of each lane; y where one is NaN."""
    return _chosen(">")(typing_context, x, y)


@njit(inline="always")
def exponential(x: Any) -> Any:
    """exp of each lane, to about 1e-7; beyond 87 it stays where it is, and NaN is NaN. Source: Cephes, expf."""
    x = least(splat(87.0), most(splat(-87.0), x))
    whole = _floor(x * splat(1.44269504) + splat(0.5))
    x = x - whole * splat(0.693359375) + whole * splat(2.12194440e-4)
    p = splat(1.9875691500e-4) * x + splat(1.3981999507e-3)
    p = p * x + splat(8.3334519073e-3)
    p = p * x + splat(4.1665795894e-2)
    p = p * x + splat(1.6666665459e-1)
    p = p * x + splat(5.0000001201e-1)
    p = p * x * x + x + splat(1.0)
    return p * _power_of_two(whole)


@njit(inline="always")
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) of each lane, to about 1e-7."""
    return splat(1.0) / (splat(1.0) + exponential(splat(0.0) - x))


def _spread(builder: Any, value: Any) -> Any:
    vector = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(vector, vector, ir.Constant(_INTEGERS, [0] * WIDTH))


def _arithmetic(instruction: str) -> Any:
    @intrinsic
    def operation(typing_context: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments, flags=("contract",))  # a product may fuse with a sum

        return lanes(lanes, lanes), generate

    return operation


def _register(operation: Callable[..., Any], instruction: str) -> None:
    implementation = _arithmetic(instruction)

    @overload(operation, strict=False)  # the strict check compares annotations, which a lambda cannot have
    def _overload(x: Any, y: Any) -> Any:
        if isinstance(x, LanesType) and isinstance(y, LanesType):
            return lambda x, y: implementation(x, y)
        return None


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register(_operation, _instruction)
