"""What a neuron model consists of: parameters, state, one step, and the derivative of that step.

All else (loop over time, recurrence, kernels, what is kept for backward) serves every model. The
text of a step is read by each: with tensors by the loop in PyTorch (`loop.py`), with single numbers
by the kernels on a CPU (`cpu/fused.py`), with a tile of them by those on a GPU (`gpu/fused.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch

from blockspike.neurons.surrogate import Surrogate


@dataclass(frozen=True)
class NeuronModel:
    """A model of spiking neurons.

    `step` and `reverse_step` are plain functions of a module, of arithmetic, `where`, `maximum` and
    other such functions, called by name. Parameters, states and drive come to them as tensors
    [B, N] (parameters [N]) in the loop, as single numbers in the kernels. Numbers come in
    `constants`, which begin with 0 and 1: a literal would make a kernel calculate in float64.

    Attributes:
        name: as in messages.
        parameters: names of what each neuron has one value of.
        states: names of what a step hands on to the next, each 0 in the beginning. The first is the
            membrane, in which NaN and Inf must stay once they are there.
        step: (drive, parameters, constants, state, fire) → spike, margin, state after the step;
            `state` is the states, then the counters. `fire(margin)` gives the spike, 1 if the
            margin V − θ is above 0, and 1 − spike for a reset, whose gradient can be switched off.
        reverse_step: (drive, parameters, constants, state, margin, slope, grad_spike,
            reset_has_grad, grad_state) → gradients of drive, parameters and the states before the
            step. The arguments are those of the step, its margin, the surrogate's derivative there,
            and the loss's gradient of its spike and of the states after it; `reset_has_grad` is 1
            if the 1 − spike of a reset carries gradient, else 0.
        counters: names of further states, through which no gradient flows.

    Raises:
        ValueError: no parameters or states, or something else than a function of a module.
    """

    name: str
    parameters: tuple[str, ...]
    states: tuple[str, ...]
    step: Callable[..., Any]
    reverse_step: Callable[..., Any]
    counters: tuple[str, ...] = ()

    def __post_init__(self):
        for name, value in (("parameters", self.parameters), ("states", self.states)):
            if not value or not isinstance(value, tuple):
                raise ValueError(f"{name}: expected a tuple of at least one name, got {value!r}")
        for name, function in (("step", self.step), ("reverse_step", self.reverse_step)):
            if not isinstance(function, FunctionType):
                raise ValueError(f"{name}: expected a function of a module, got {function!r}")
            if function.__closure__:  # two of them would look alike to the cache of kernels
                raise ValueError(
                    f"{function.__qualname__}: expected a function of a module, got one that is "
                    "made within another; numbers can come from `constants`"
                )


class SimulationSpec(NamedTuple):
    """What every neuron of a simulation has in common.

    Attributes:
        model: what a step does.
        constants: what `model.step` gets of numbers, without the 0 and 1 in front.
        recurrent_delay, surrogate, detach_spikes: see `simulate`.
    """

    model: NeuronModel
    constants: tuple[float, ...]
    recurrent_delay: int
    surrogate: Surrogate
    detach_spikes: bool


def translated(function: Callable[..., Any], translate: Callable[..., Any]) -> FunctionType:
    """A copy of a model's function, for a compiler, that calls what `translate` makes of others.

    These are the functions written in Python that it names: `where`, `maximum`, its module's own.
    """
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        if isinstance(names.get(name), FunctionType):
            names[name] = translate(names[name])
    return FunctionType(function.__code__, names, function.__name__)


def where(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, else y."""
    return torch.where(condition, x, y)


def maximum(x: Any, least: float) -> Any:
    """x, but at least `least`."""
    return x.clamp(min=least)
