"""Numba's types of neuron models and surrogates, and how a kernel's cache on disk knows them."""

import hashlib
import inspect
import marshal
from collections.abc import Callable
from types import FunctionType
from typing import Any

from numba import types
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

from blockspike.neurons.model import NeuronModel, used_by_name
from blockspike.neurons.surrogate import Surrogate


class Compiled(types.Type):
    """Numba type of something with functions, so that a kernel is compiled for each separately.

    The type's name identifies it in Numba's cache on disk too. It contains a hash of the functions
    and of everything compiled with them, so that the cache notices a change: Numba itself only
    checks the file of the outermost function.

    Args:
        of: model, or class of surrogates; kernels are compiled for it.
        name: its name.
        content: what the kernels depend on besides the functions.
        functions: compiled with the kernels.
    """

    def __init__(self, of: Any, name: str, content: list[Any], functions: tuple[Callable, ...]):
        self.of = of
        content = [name, *content]
        for function in functions:
            code = marshal.dumps(function.__code__, 2)  # the source may be newer
            content += [function.__module__, function.__qualname__, code, _source(function)]
            content += _globals_of(function)
        digest = hashlib.sha256(repr(content).encode()).hexdigest()
        super().__init__(f"Compiled({name}, {digest[:32]})")

    def __reduce__(self) -> Any:
        """Reduce to the name, since a process that reads the cache may not have the functions."""
        return _known_or_bare, (self.name,)


def _globals_of(function: Callable) -> list[Any]:
    """Content of what a function uses by name; in a notebook, its source has none."""
    found = []
    for _, name, value in used_by_name(function):
        is_function = isinstance(value, FunctionType)
        own = (marshal.dumps(value.__code__, 2), value.__defaults__) if is_function else value
        found.append((name, repr(own)))
    return found


def _known_or_bare(name: str) -> Compiled:
    if name not in _by_name:
        bare = object.__new__(Compiled)
        bare.name = name  # enough to differ from every known type
        return bare
    return _by_name[name]


def _source(function: Callable) -> str:
    try:
        return inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):  # defined interactively
        return ""


register_model(Compiled)(models.OpaqueModel)
_types: dict[Any, Compiled] = {}
_by_name: dict[str, Compiled] = {}


def _remembered(known: Compiled) -> Compiled:
    _types[known.of] = _by_name[known.name] = known
    return known


@typeof_impl.register(NeuronModel)
def _typeof_model(model, c):  # pyright: ignore[reportUnusedParameter]
    if model in _types:
        return _types[model]
    content = [model.parameters, model.states, model.counters]
    content += [model.threshold_parameters, model.accumulators]
    functions = tuple(f for f in (model.step, model.reverse_step) if f is not None)
    return _remembered(Compiled(model, model.name, content, functions))


@typeof_impl.register(Surrogate)
def _typeof_surrogate(surrogate, c):  # pyright: ignore[reportUnusedParameter]
    kind = type(surrogate)
    if kind in _types:
        return _types[kind]
    return _remembered(Compiled(kind, kind.__qualname__, [], (kind.formula,)))


@unbox(Compiled)
def _unbox(kind, value, c):  # pyright: ignore[reportUnusedParameter]
    return NativeValue(c.context.get_dummy_value())
