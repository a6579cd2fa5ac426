"""Numba's type of a neuron model, and how a kernel's cache on disk knows the model."""

import hashlib
import inspect
import marshal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import types
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

from blockspike.neurons.model import NeuronModel


class _ModelType(types.Type):
    """Numba type of a model, so that a kernel is compiled separately for each model.

    The type's name identifies the model in Numba's cache on disk too. It contains a hash of the
    step and of everything compiled with it, so that the cache notices a change: Numba itself only
    checks the file of the outermost function.
    """

    def __init__(self, model: NeuronModel):
        self.model = model
        content = [model.name, model.parameters, model.states, model.counters]
        content += [model.threshold_parameters, model.accumulators, _kernels()]
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
