"""Short error messages for models that Numba cannot compile."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numba import from_dtype, typeof, types
from numba.core.errors import NumbaError

from blockspike.neurons.cpu.steps import compiled_function, fire
from blockspike.neurons.model import NeuronModel, SimulationSpec


def error_of_model(spec: SimulationSpec, dtype: torch.dtype, error: NumbaError) -> ValueError:
    """Make an error with a one-line message in place of Numba's pages.

    It says that Numba cannot compile `step` or `reverse_step`, or that they return values other
    than those the kernels store.
    """
    return ValueError(_first_fault(spec, dtype) or f"{spec.model.name}: {_cause(error)}")


class _Signature(NamedTuple):
    """Signature of a model's function; `expected` describes the return value in words."""

    function: Callable[..., Any]
    arguments: tuple[types.Type, ...]
    returns: tuple[types.Type, ...]
    expected: str


def _signatures(model: NeuronModel, n_constants: int, real: Any) -> list[_Signature]:
    own, numbers, carried = (
        types.UniTuple(real, n) for n in (len(model.parameters), n_constants, len(model.states))
    )
    state = types.UniTuple(real, len(model.states) + len(model.counters))
    return [
        _Signature(
            model.step,
            (real, own, numbers, state, typeof(fire)),
            (real, real, state),
            f"(spike, margin, {state})",
        ),
        _Signature(
            model.reverse_step,
            (real, own, numbers, state, real, real, real, real, carried),
            (real, own, carried),
            f"gradients of (drive, parameters, states): ({real}, {own}, {carried})",
        ),
    ]


def _first_fault(spec: SimulationSpec, dtype: torch.dtype) -> str | None:
    """Describe the fault of the first function that has one, by compiling each function alone.

    A spike, a margin or a gradient of the drive may have another float type, which is converted.
    """
    real = from_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
    of_model = _signatures(spec.model, len(spec.constants) + 2, real)
    for function, arguments, returns, expected in of_model:
        name = function.__qualname__
        try:
            compiled = compiled_function(function)
            compiled.compile(arguments)
        except (NumbaError, TypeError) as error:
            return f"{name}: expected a function that Numba compiles, got {_cause(error)}"
        got: Any = compiled.overloads[arguments].signature.return_type
        found = tuple(got) if isinstance(got, types.BaseTuple) else ()  # pyright: ignore
        alike = len(found) == 3 and all(
            a == b or (isinstance(a, types.Float) and isinstance(b, types.Float))
            for a, b in zip(found, returns, strict=True)
        )
        if not alike:
            hint = "; take numbers from `constants`" if len(found) == 3 else ""
            return f"{name}: expected it to return {expected}, got {got}{hint}"
    return None


def _cause(error: Exception) -> str:
    """First informative line of a Numba message, with its place in the source."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # Numba adds colours if colorama is installed
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("Failed in nopython")]
    cause = lines[0] if lines else type(error).__name__
    if cause.endswith("signature:") and len(lines) > 1:
        cause = f"{cause} {lines[1].removeprefix('>>> ')}"
    cause = re.sub(r"Module\(<module '([\w.]+)'.*?>\)", r"module \1", cause)
    cause = re.sub(r"^\('(.*)', '(.*)'\)$", r"\1\2", cause)  # an exception with two arguments
    place = re.search(r'File "(?:[^"]*/)?([^"/]+)", line (\d+)', text)
    return cause if place is None else f"{cause} ({place[1]}, line {place[2]})"
