"""Short error messages for models that Numba cannot compile."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numba import from_dtype, typeof, types
from numba.core.errors import NumbaError

from blockspike.neurons.cpu.lanes import Lanes, lanes_of
from blockspike.neurons.cpu.steps import compiled_alone, fire
from blockspike.neurons.spec import SimulationSpec


def error_of_model(spec: SimulationSpec, dtype: torch.dtype, error: NumbaError) -> ValueError:
    """Make an error with a one-line message in place of Numba's pages.

    It says that Numba cannot compile a step, its derivative or the surrogate, or that they return
    values other than those the kernels store.
    """
    return ValueError(_first_fault(spec, dtype) or f"{spec.model.name}: {_cause(error)}")


class _Signature(NamedTuple):
    """Signature of a model's function; `expected` describes the return value in words."""

    function: Callable[..., Any]
    arguments: tuple[types.Type, ...]
    returns: types.Type
    expected: str


def _signatures(spec: SimulationSpec, real: Any) -> list[_Signature]:
    model, x = spec.model, lanes_of(real)
    own, carried = (
        types.UniTuple(x, n)
        for n in (len(model.parameters), len(model.states) + len(model.accumulators))
    )
    numbers, of_slope = (
        types.UniTuple(real, 2 + len(constants))
        for constants in (spec.constants, spec.surrogate.constants)
    )
    state = types.UniTuple(x, len(model.states) + len(model.counters))
    signatures = [
        _Signature(
            model.step,
            (x, own, numbers, state, typeof(fire)),
            types.Tuple((x, x, state)),
            f"(spike, margin, {len(state)} states)",
        ),
        _Signature(spec.surrogate.formula, (x, of_slope), x, "a derivative"),
    ]
    if model.reverse_step is not None:
        arguments = (x, own, numbers, state, x, x, x, real, carried)
        expected = f"gradients of (drive, {len(own)} parameters, {len(carried)} states)"
        returns = types.Tuple((x, own, carried))
        signatures.insert(1, _Signature(model.reverse_step, arguments, returns, expected))
    return signatures


def _fits(got: Any, wanted: Any) -> bool:
    """Whether a returned value can be stored: a vector or a number, or as many of them."""
    if isinstance(wanted, Lanes):
        return got == wanted or isinstance(got, types.Float | types.Integer)
    if not isinstance(got, types.BaseTuple):
        return False
    parts: Any = got
    return len(parts) == len(wanted) and all(map(_fits, parts, wanted))


def _first_fault(spec: SimulationSpec, dtype: torch.dtype) -> str | None:
    """Describe the fault of the first function that has one, by compiling each function alone.

    Numbers among the returned values are converted.
    """
    real = from_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
    for function, arguments, returns, expected in _signatures(spec, real):
        name = function.__qualname__
        try:
            compiled = compiled_alone(function)
            compiled.compile(arguments)
        except (NumbaError, TypeError) as error:
            return f"{name}: expected a function that Numba compiles, got {_cause(error)}"
        got: Any = compiled.overloads[arguments].signature.return_type
        if not _fits(got, returns):
            return f"{name}: expected it to return {expected}, got {_shown(got)}"
    return None


def _shown(kind: Any) -> str:
    """The type as a reader of the step sees it: a value for each neuron is a vector."""
    return re.sub(r"Lanes\((\w+), \d+\)", r"\1 per neuron", str(kind))


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
