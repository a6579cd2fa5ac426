"""A neuron model in kernels: its step, the derivative, and rows of numbers as tuples.

The step of a model is a text (`derivative.py`), which Numba compiles into the kernel that calls
`step(model, …)`. So each model has its kernel, and LLVM optimises the step within the loop. To
Numba, a model is an argument without content whose type, `Compiled`, names the text.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

from blockspike.neurons.cpu.exponential import exact_exp
from blockspike.neurons.cpu.kernels import EXACT, WITH_FMA, in_kernels, intrinsic
from blockspike.neurons.cpu.lane_memory import load
from blockspike.neurons.cpu.lanes import Lanes, lanes_of, spread
from blockspike.neurons.derivative import Derived, compiled
from blockspike.neurons.model import exp, maximum, where


class Compiled(types.Type):
    """Numba type of something with text, so that a kernel is compiled for each separately.

    Its name holds a hash of the text, and so identifies it in Numba's cache on disk, too.
    """

    def __init__(self, of: Any, digest: str):
        self.of = of
        super().__init__(f"Compiled({digest})")

    def __reduce__(self) -> Any:
        """Reduce to the name, since a process that reads the cache may not have the model."""
        return _bare, (self.name,)


def _bare(name: str) -> Compiled:
    if name in _by_name:
        return _by_name[name]
    kind = object.__new__(Compiled)
    kind.name = name  # enough to differ from every known type
    return kind


register_model(Compiled)(models.OpaqueModel)
_types: dict[Any, Compiled] = {}
_by_name: dict[str, Compiled] = {}


def known_type(of: Any, digest: str) -> Compiled:
    """The type of something, always the same object, which Numba finds faster."""
    if of not in _types:
        kind = Compiled(of, digest)
        _types[of] = _by_name[kind.name] = kind
    return _types[of]


@typeof_impl.register(Derived)
def _typeof_model(model, c):  # pyright: ignore[reportUnusedParameter]
    return _types.get(model) or known_type(model, model.digest)


@unbox(Compiled)
def _unbox(kind, value, c):  # pyright: ignore[reportUnusedParameter]
    return NativeValue(c.context.get_dummy_value())


def in_numba(text: str, options: dict[str, Any], exponential: Any = exp) -> Any:
    """The function of a text, for kernels."""
    return njit(**options)(compiled(text, where=where, maximum=maximum, exp=exponential))


@partial(in_kernels, **EXACT)
def step(model, *arguments):
    """Spike, margin and states after a step of (drive, parameters, constants, state).

    The drive may be a pair (see `given_spikes`).
    """

    def call(model, *arguments):
        spike, _, _, margin, after = whole_step(model, *arguments)
        return spike, margin, after

    return call


@partial(in_kernels, **EXACT)
def whole_step(model, *arguments):
    """Do as `step`, but return spike, membrane, threshold, margin and states."""
    own = in_numba(model.of.step, EXACT, exact_exp)
    return lambda model, *arguments: _complete(own(*arguments), arguments[0])


@partial(in_kernels, **WITH_FMA)
def reverse_step(model, *arguments):
    """Gradients of drive, parameters and state before a step; arguments as in `NeuronModel`.

    Gradients of membrane and threshold may follow.
    """
    has_level = len(arguments) > 9
    own = in_numba(model.of.reverse_all if has_level else model.of.reverse, WITH_FMA)
    return lambda model, *arguments: _complete(own(*arguments), arguments[0])


@in_kernels
def _complete(results, like):
    """Results of a step, numbers among vectors spread over the lanes.

    A step may return a constant, such as a threshold of 1; the kernel's types must not depend on
    it.
    """
    if isinstance(like, Lanes):
        return lambda results, like: spread(results, like)
    return lambda results, like: spread(results, like[0])  # a drive and the given spikes


# Rows of numbers


@in_kernels
def n_rows(model):
    """Numbers of parameters, states with counters, and states alone."""
    m = model.of.model
    numbers = (len(m.parameters), len(m.all_states), len(m.states))
    return lambda model: numbers


def _row_loader(count: Callable[[Any], int]) -> Any:
    @intrinsic
    def load_rows(typingctx, model, array, at, stride, n):  # pyright: ignore[reportUnusedParameter]
        """Load n lanes from array[at + row · stride] on, for each row, as a tuple."""
        result = types.UniTuple(lanes_of(array.dtype), count(model.of.model))

        def codegen(context, builder, signature, args):
            row, values = args[2], []
            for _ in range(result.count):
                value = load(context, builder, array, args[1], row, args[4], result.dtype.count)
                values.append(value)
                row = builder.add(row, args[3])
            return context.make_tuple(builder, result, values)

        return result(model, array, types.uintp, types.uintp, types.uintp), codegen

    return load_rows


parameter_rows = _row_loader(lambda m: len(m.parameters))
state_rows = _row_loader(lambda m: len(m.all_states))
grad_rows = _row_loader(lambda m: len(m.states) + len(m.accumulators))


@intrinsic
def no_sums(typingctx, model, array):  # pyright: ignore[reportUnusedParameter]
    """Zeros for each parameter, as a tuple of vectors."""
    result = types.UniTuple(lanes_of(array.dtype), len(model.of.model.parameters))

    def codegen(context, builder, signature, args):
        zero = ir.Constant(result.dtype.llvm, None)
        return context.make_tuple(builder, result, [zero] * result.count)

    return result(model, array), codegen


def numbers(constants: Any, like: np.ndarray) -> tuple:
    """Constants for a step in the dtype of the arrays: 0, 1, then those of the model."""
    real = like.dtype.type
    return tuple(real(x) for x in (0.0, 1.0, *constants))
