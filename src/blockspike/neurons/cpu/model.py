"""Interface between Numba kernels and models: types, functions, and rows loaded as tuples."""

import hashlib
import inspect
import marshal
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import (
    NativeValue,
    intrinsic,
    models,
    overload,
    register_model,
    typeof_impl,
    unbox,
)

from blockspike.neurons.cpu.kernels import kernel
from blockspike.neurons.model import NeuronModel, maximum, translated, where

WIDTH = 128  # columns of a strip, and numbers in a row of its state


class _ModelType(types.Type):
    """Numba type of a model, so that a kernel is compiled separately for each model.

    The type's name identifies the model in Numba's cache on disk too. It contains a hash of the
    step and of everything compiled with it, so that the cache notices a change: Numba itself only
    checks the file of the outermost function.
    """

    def __init__(self, model: NeuronModel):
        self.model = model
        content = [model.name, model.parameters, model.states, model.counters, _kernels()]
        for function in (model.step, model.reverse_step):
            code = marshal.dumps(function.__code__, 2)  # the source may be newer
            content += [function.__module__, function.__qualname__, code, _source(function)]
        digest = hashlib.sha256(repr(content).encode()).hexdigest()
        super().__init__(f"NeuronModel({model.name}, {digest[:32]})")

    def __reduce__(self) -> Any:
        """Reduce to the name, since a process that reads the cache may not have the model."""
        return _known_or_bare, (self.name,)


def _known_or_bare(name: str) -> _ModelType:
    if name not in _by_name:
        bare = object.__new__(_ModelType)
        bare.name = name  # enough to differ from every known model
        return bare
    return _by_name[name]


def _source(function: Callable) -> str:
    try:
        return inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):  # defined interactively
        return ""


@cache
def _kernels() -> bytes:
    return b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))


register_model(_ModelType)(models.OpaqueModel)
_types: dict[NeuronModel, _ModelType] = {}
_by_name: dict[str, _ModelType] = {}


@typeof_impl.register(NeuronModel)
def _typeof(model, c):  # pyright: ignore[reportUnusedParameter]
    if model not in _types:
        known = _types[model] = _ModelType(model)
        _by_name[known.name] = known
    return _types[model]


@unbox(_ModelType)
def _unbox(kind, model, c):  # pyright: ignore[reportUnusedParameter]
    return NativeValue(c.context.get_dummy_value())


# Functions of the model

_EXACT: Any = {"error_model": "numpy", "nogil": True}
_WITH_FMA: Any = {**_EXACT, "fastmath": {"contract"}}


def step(model: Any, drive: Any, parameters: Any, constants: Any, state: Any) -> Any:
    """Spike, margin and state after a step; callable in kernels only."""
    raise NotImplementedError


def reverse_step(
    model: Any, drive: Any, parameters: Any, constants: Any, state: Any, margin: Any, slope: Any,
    grad_spike: Any, reset_has_grad: Any, grad_state: Any,
) -> Any:  # fmt: skip
    """Gradients of drive, parameters and state before a step; callable in kernels only."""
    raise NotImplementedError


@kernel
def fire(margin):
    """Spike for a margin, and 1 − spike; for kernels."""
    real = type(margin)
    spike = real(1.0) if margin > real(0.0) else real(0.0)
    return spike, real(1.0) - spike


def _compiled(function: Callable, options: dict[str, Any]) -> Any:
    """Prepare a function and those it calls; `where` and `maximum` have overloads below."""
    if function in (where, maximum):
        return function
    return numba.njit(**options)(translated(function, partial(_compiled, options=options)))


def compiled_function(function: Callable) -> Any:
    """Prepare a model's function for Numba, which compiles it when first called."""
    return _compiled(function, _EXACT)


@overload(step, jit_options=_EXACT)
def _step(model, drive, parameters, constants, state):
    own = compiled_function(model.model.step)
    return lambda model, drive, parameters, constants, state: own(
        drive, parameters, constants, state, fire
    )


@overload(reverse_step, jit_options=_WITH_FMA)
def _reverse_step(
    model,
    drive,
    parameters,
    constants,
    state,
    margin,
    slope,
    grad_spike,
    reset_has_grad,
    grad_state,
):
    own = _compiled(model.model.reverse_step, _WITH_FMA)

    def call(
        model,
        drive,
        parameters,
        constants,
        state,
        margin,
        slope,
        grad_spike,
        reset_has_grad,
        grad_state,
    ):
        return own(
            drive,
            parameters,
            constants,
            state,
            margin,
            slope,
            grad_spike,
            reset_has_grad,
            grad_state,
        )

    return call


@overload(where)
def _where(condition, x, y):
    return lambda condition, x, y: x if condition else y


@overload(maximum)
def _maximum(x, least):
    return lambda x, least: max(x, least)


# Rows of numbers


def n_rows(model: Any) -> Any:
    """Numbers of parameters, states with counters, and states alone; callable in kernels only."""
    raise NotImplementedError


@overload(n_rows)
def _n_rows(model):
    m = model.model
    n_states = len(m.states)
    numbers = (len(m.parameters), n_states + len(m.counters), n_states)
    return lambda model: numbers


def _loader(numbers: Callable[[NeuronModel], int]) -> Any:
    @intrinsic
    def load(typingctx, model, array, at):  # pyright: ignore[reportUnusedParameter]
        """Load array[at], array[at + WIDTH], … as a tuple."""
        result = types.UniTuple(array.dtype, numbers(model.model))

        def codegen(context, builder, signature, args):
            data = context.make_array(array)(context, builder, args[1]).data
            values = [builder.load(_at(builder, data, args[2], k)) for k in range(result.count)]
            return context.make_tuple(builder, result, values)

        return result(model, array, types.uintp), codegen

    return load


def _storer(numbers: Callable[[NeuronModel], int], add: bool = False) -> Any:
    @intrinsic
    def store(typingctx, model, array, at, values):  # pyright: ignore[reportUnusedParameter]
        """Store values to (or add them to) array[at], array[at + WIDTH], …"""
        n = numbers(model.model)
        if values != types.UniTuple(array.dtype, n):
            raise TypingError(f"values: expected {n} of {array.dtype}, got {values}")

        def codegen(context, builder, signature, args):
            data = context.make_array(array)(context, builder, args[1]).data
            for k in range(n):
                place = _at(builder, data, args[2], k)
                value = builder.extract_value(args[3], k)
                value = builder.fadd(builder.load(place), value) if add else value
                builder.store(value, place)
            return context.get_dummy_value()

        return types.void(model, array, types.uintp, values), codegen

    return store


def _at(builder: Any, data: Any, at: Any, k: int) -> Any:
    return builder.gep(data, [builder.add(at, at.type(k * WIDTH))])


load_parameters = _loader(lambda m: len(m.parameters))
load_states = _loader(lambda m: len(m.states) + len(m.counters))
load_grads = _loader(lambda m: len(m.states))
store_states = _storer(lambda m: len(m.states) + len(m.counters))
store_grads = _storer(lambda m: len(m.states))
add_to_sums = _storer(lambda m: len(m.parameters), add=True)


def numbers(constants: tuple[float, ...], like: np.ndarray) -> tuple:
    """Constants for a step in the dtype of the arrays: 0, 1, then those of the model."""
    real = like.dtype.type
    return tuple(real(x) for x in (0.0, 1.0, *constants))
