"""A neuron model in kernels: its step, the derivative, and rows of numbers as tuples."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

import blockspike.neurons.cpu.exponential
import blockspike.neurons.cpu.model  # noqa: F401 (it registers the types)
from blockspike.neurons.cpu.kernels import intrinsic, kernel
from blockspike.neurons.cpu.lane_memory import load
from blockspike.neurons.cpu.lanes import Lanes, dtype_of, lanes_of, spread
from blockspike.neurons.model import NeuronModel, exp, maximum, translated, where

_EXACT: Any = {"error_model": "numpy", "nogil": True}
WITH_FMA: Any = {**_EXACT, "fastmath": {"contract"}}


def step(model: Any, *arguments: Any) -> Any:
    """Spike, margin and state after a step of (drive, parameters, constants, state).

    The drive may be a pair (see `given_spikes`).

    Callable in kernels only.
    """
    raise NotImplementedError


def reverse_step(model: Any, *arguments: Any) -> Any:
    """Gradients of drive, parameters and state before a step; arguments as in `NeuronModel`.

    Callable in kernels only.
    """
    raise NotImplementedError


@kernel
def fire(margin):
    """Spike for a margin, and 1 − spike; for kernels."""
    return _fire(margin)


def _fire(margin: Any) -> Any:
    raise NotImplementedError


@overload(_fire)
def _fire_overload(margin):
    real = dtype_of(margin)

    def call(margin):
        fires = margin > real(0.0)  # 1 − spike as a choice of its own: a step has to wait less
        return where(fires, real(1.0), real(0.0)), where(fires, real(0.0), real(1.0))

    return call


def compiled(function: Callable, options: dict[str, Any]) -> Any:
    """Prepare a function and those it calls; `where`, `maximum` and `exp` have overloads."""
    if function in (where, maximum, exp):
        return function
    return numba.njit(**options)(translated(function, partial(compiled, options=options)))


def compiled_alone(function: Callable) -> Any:
    """Prepare a model's function for Numba, to be compiled but not called."""
    return compiled(function, {**_EXACT, "no_cpython_wrapper": True})


@overload(step, jit_options=_EXACT)
def _step(model, *arguments):
    own = compiled(model.of.step, _EXACT)
    return lambda model, *arguments: _complete(own(*arguments, fire), arguments[0])


@overload(reverse_step, jit_options=WITH_FMA)
def _reverse_step(model, *arguments):
    own = compiled(model.of.reverse_step, WITH_FMA)
    return lambda model, *arguments: _complete(own(*arguments), arguments[0])


def _complete(results: Any, like: Any) -> Any:
    """Results of a step, numbers among vectors spread over the lanes; callable in kernels only."""
    raise NotImplementedError


@overload(_complete)
def _complete_overload(results, like):
    if isinstance(like, Lanes):
        return lambda results, like: spread(results, like)
    if isinstance(like, types.UniTuple):  # a drive and the given spikes
        return lambda results, like: spread(results, like[0])  # pyright: ignore
    return lambda results, like: results


# Rows of numbers


def n_rows(model: Any) -> Any:
    """Numbers of parameters, states with counters, and states alone; callable in kernels only."""
    raise NotImplementedError


@overload(n_rows)
def _n_rows(model):
    m = model.of
    n_states = len(m.states)
    numbers = (len(m.parameters), n_states + len(m.counters), n_states)
    return lambda model: numbers


def _row_loader(count: Callable[[NeuronModel], int]) -> Any:
    @intrinsic
    def load_rows(typingctx, model, array, at, stride, n):  # pyright: ignore[reportUnusedParameter]
        """Load n lanes from array[at + row · stride] on, for each row, as a tuple."""
        result = types.UniTuple(lanes_of(array.dtype), count(model.of))

        def codegen(context, builder, signature, args):
            row, values = args[2], []
            for _ in range(result.count):
                values.append(load(context, builder, array, args[1], row, args[4]))
                row = builder.add(row, args[3])
            return context.make_tuple(builder, result, values)

        return result(model, array, types.uintp, types.uintp, types.uintp), codegen

    return load_rows


parameter_rows = _row_loader(lambda m: len(m.parameters))
state_rows = _row_loader(lambda m: len(m.states) + len(m.counters))
grad_rows = _row_loader(lambda m: len(m.states) + len(m.accumulators))


def _zeros(count: Callable[[NeuronModel], int]) -> Any:
    @intrinsic
    def zeros(typingctx, model, array):  # pyright: ignore[reportUnusedParameter]
        """Zeros for each row, as a tuple of vectors."""
        result = types.UniTuple(lanes_of(array.dtype), count(model.of))

        def codegen(context, builder, signature, args):
            zero = ir.Constant(result.dtype.llvm, None)
            return context.make_tuple(builder, result, [zero] * result.count)

        return result(model, array), codegen

    return zeros


no_sums = _zeros(lambda m: len(m.parameters))
no_grads = _zeros(lambda m: len(m.states) + len(m.accumulators))


@intrinsic
def without_threshold(typingctx, model, rows):  # pyright: ignore[reportUnusedParameter]
    """Rows of parameters or their gradients, with 0 for those of the threshold."""
    m = model.of

    def codegen(context, builder, signature, args):
        values = [
            ir.Constant(rows.dtype.llvm, None)
            if name in m.threshold_parameters
            else builder.extract_value(args[1], k)
            for k, name in enumerate(m.parameters)
        ]
        return context.make_tuple(builder, rows, values)

    return rows(model, rows), codegen


@intrinsic
def add_states(typingctx, model, grads, more):  # pyright: ignore[reportUnusedParameter]
    """Add the gradients of states in `more` to those in `grads`; accumulators stay."""
    n_states = len(model.of.states)

    def codegen(context, builder, signature, args):
        rows = [builder.extract_value(args[1], k) for k in range(grads.count)]
        for k in range(n_states):
            rows[k] = builder.fadd(rows[k], builder.extract_value(args[2], k))
        return context.make_tuple(builder, grads, rows)

    return grads(model, grads, more), codegen


def numbers(constants: tuple[float, ...], like: np.ndarray) -> tuple:
    """Constants for a step in the dtype of the arrays: 0, 1, then those of the model."""
    real = like.dtype.type
    return tuple(real(x) for x in (0.0, 1.0, *constants))
