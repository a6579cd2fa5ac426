"""Neuron models: parameters, state, one step, and perhaps the derivative of that step.

Everything else (the loop over time, recurrence, kernels, memory for backward) is shared by all
models. The same step runs on tensors in the PyTorch loop (`loop.py`), on vectors in the CPU kernels
(`cpu/fused.py`), and on tiles of numbers in the GPU kernels (`gpu/fused.py`).
"""

import dis
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NoReturn

import torch


@dataclass(frozen=True)
class NeuronModel:
    """Model of spiking neurons.

    `step` and `reverse_step` are plain module-level functions. They use `+ - * /`, comparisons,
    `& |`, `abs`, `where`, `maximum`, and functions made of these, called by name. In the loop,
    drive and states are tensors [B, N] and parameters tensors [N]; in the kernels, all are vectors
    or tiles of neurons. Constants come in `constants`, which begins with 0 and 1, or as literals.

    Attributes:
        name: name of the model, for messages.
        parameters: names of the parameters, each with one value per neuron.
        states: names of the states carried from step to step, each initially 0. The first is the
            membrane; once NaN or Inf, it must stay so.
        step: (drive, parameters, constants, state, fire) → spike, margin, state after the step.
            `state` holds the states, then the counters. `fire(margin)` returns the spike, 1 if the
            margin V − θ is above 0, and 1 − spike for the reset, whose gradient can be switched
            off.
        reverse_step: (drive, parameters, constants, state, margin, slope, grad_spike,
            reset_has_grad, grad_state) → gradients of drive, parameters and the states before the
            step. The arguments are those of the step, its margin, the surrogate's derivative at
            the margin, and the gradients of the spike and of the states after the step;
            `reset_has_grad` is 1 if gradient flows through the reset's 1 − spike, else 0. None: it
            is derived from the step where a kernel needs it.
        counters: names of further states, which carry no gradient.
        threshold_parameters: names of parameters that scale what the threshold adds to 1. With
            these at 0, the margin is V − 1, from which the gradient of the membrane is taken.
        accumulators: names of what only `reverse_step` carries from step to step, in `grad_state`
            after the gradients of the states.

    Raises:
        ValueError: no parameters or states, or a step that is not a module-level function.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> def step(drive, parameters, constants, state, fire):
        ...     zero, one = constants
        ...     membrane = parameters[0] * state[0] + drive
        ...     spike, not_spiked = fire(membrane - one)
        ...     return spike, membrane - one, (membrane * not_spiked,)
        >>> lif = bs.NeuronModel("LIF", ("beta",), ("membrane",), step)
        >>> current = torch.full((100, 1, 1), 0.2, requires_grad=True)
        >>> trace = bs.simulate(lif, current, {"beta": torch.tensor([0.9])})
        >>> int(trace.spikes.sum())
        14
    """

    name: str
    parameters: tuple[str, ...]
    states: tuple[str, ...]
    step: Callable[..., Any]
    reverse_step: Callable[..., Any] | None = None
    counters: tuple[str, ...] = ()
    threshold_parameters: tuple[str, ...] = ()
    accumulators: tuple[str, ...] = ()

    def __post_init__(self):
        for name, value in (("parameters", self.parameters), ("states", self.states)):
            if not value or not isinstance(value, tuple):
                raise ValueError(f"{name}: expected a tuple of at least one name, got {value!r}")
        for name, function in (("step", self.step), ("reverse_step", self.reverse_step)):
            if name == "reverse_step" and function is None:
                continue
            if not isinstance(function, FunctionType):
                raise ValueError(f"{name}: expected a module-level function, got {function!r}")
            if function.__closure__:  # the cache of kernels could not tell two of them apart
                raise ValueError(
                    f"{function.__qualname__}: expected a module-level function, got a closure; "
                    "numbers can come from `constants`"
                )


_checked: set[tuple[NeuronModel, int]] = set()


def check_step(
    model: NeuronModel,
    current: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    constants: tuple[float, ...],
) -> None:
    """Raise ValueError if the step, run once, does not do what `NeuronModel` says of it.

    It gets the first step of the current [T, B, N], for one of the batch, the parameters [N] and
    states that are not 0; only the first simulation of a model is checked.
    """
    if (model, len(constants)) in _checked:
        return
    fired: list[tuple[torch.Tensor, torch.Tensor]] = []

    def fire(margin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        spikes = (margin > 0).to(margin.dtype)
        fired.append((spikes, margin))
        return spikes, 1 - spikes

    def refuse(expected: str, got: object) -> NoReturn:
        raise ValueError(f"{model.step.__qualname__}: expected {expected}, got {got}") from None

    names = (*model.states, *model.counters)
    devices = [current.device] if current.is_cuda else []
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        drive, *parameters = (x.detach().clone() for x in (current[0, :1], *parameters))
        state = tuple(torch.full_like(drive, 0.5) for _ in names)
        versions = [x._version for x in (drive, *parameters, *state)]
        try:
            result = model.step(drive, parameters, (0.0, 1.0, *constants), state, fire)
        except Exception as error:
            text = str(error).partition("\n")[0]
            raise ValueError(
                f"{model.step.__qualname__}: expected a step that runs on tensors, got {text}"
            ) from error
    if versions != [x._version for x in (drive, *parameters, *state)]:
        refuse("no argument to be changed in place", "one that is (x += y does so)")
    if not isinstance(result, tuple) or len(result) != 3:
        got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        refuse("spike, margin and the states after the step to be returned", got)
    if len(fired) != 1:
        refuse("one call of fire", len(fired))
    if not all(map(_is_same, result[:2], fired[0])):
        refuse("the spike of fire and the margin given to it to be returned first", "other values")
    if not isinstance(result[2], tuple | list) or len(result[2]) != len(names):
        got = len(result[2]) if isinstance(result[2], tuple | list) else type(result[2]).__name__
        refuse(f"a tuple of {len(names)} states ({', '.join(names)}) to be returned last", got)
    _checked.add((model, len(constants)))


def _is_same(x: Any, y: torch.Tensor) -> bool:
    alike = isinstance(x, torch.Tensor) and (x.shape, x.dtype) == (y.shape, y.dtype)
    return alike and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)


_at_first: dict[NeuronModel, list[tuple[dict[str, Any], str, Any]]] = {}


def check_names(model: NeuronModel) -> None:
    """Raise ValueError if a number or function that a step uses by name has changed.

    Kernels and derivatives are made at the first simulation, and keep its values.
    """
    used = _at_first.get(model)
    if used is None:
        used = _at_first[model] = used_by_name(model.step)
    for names, name, value in used:
        now = names.get(name)
        if now is not value and _content(now) != _content(value):
            raise ValueError(
                f"{model.name}: {name}: expected {value} as in the first simulation, got {now}; "
                "define the step again, or use `constants`"
            )


def used_by_name(function: Callable[..., Any]) -> list[tuple[dict[str, Any], str, Any]]:
    """Globals, name and value of each number and function that a function uses, also in calls."""
    used, seen, left = [], set(), [function]
    while left:
        own: Any = left.pop()
        seen.add(own)
        for name in _global_names(own):
            value = own.__globals__.get(name)
            if isinstance(value, int | float | FunctionType):
                used.append((own.__globals__, name, value))
            if isinstance(value, FunctionType) and value not in seen:
                left.append(value)
    return used


def _global_names(function: Callable[..., Any]) -> Iterator[str]:
    """Names that a function looks up in its module; not those of attributes, such as torch.exp."""
    loads = (x for x in dis.get_instructions(function) if x.opname == "LOAD_GLOBAL")
    return iter(dict.fromkeys(x.argval for x in loads))


def _content(value: Any) -> Any:
    is_function = isinstance(value, FunctionType)
    return (value.__code__, value.__defaults__) if is_function else value


def translated(function: Callable[..., Any], translate: Callable[..., Any]) -> FunctionType:
    """Copy a model's function for a compiler, with `translate` applied to each function it calls.

    This covers every Python function that it calls by name: `where`, `maximum`, and those of its
    module.
    """
    names = dict(function.__globals__)
    for name in _global_names(function):
        if isinstance(names.get(name), FunctionType):
            names[name] = translate(names[name])
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__)


def where(condition: Any, x: Any, y: Any) -> Any:
    """Select x where the condition holds, else y."""
    return torch.where(condition, x, y)


def maximum(x: Any, least: float) -> Any:
    """Maximum of x and `least`."""
    return x.clamp(min=least)


def exp(x: Any) -> Any:
    """Exponential of x, for surrogates: in a step, spikes of the methods would differ by rounding.

    The kernels compute it to a few ulp (in float64 to 1e−12).
    """
    return torch.exp(x)
