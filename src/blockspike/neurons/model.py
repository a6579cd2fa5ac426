"""Neuron models: names of parameters and states, and one step.

The loop over time, recurrence, kernels, gradients and memory for backward are the same for all
models. The loop (`loop.py`) runs the step on tensors; the kernels compile what `derivative.py`
makes of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_registered: dict[str, "NeuronModel"] = {}


@dataclass(frozen=True)
class NeuronModel:
    """Model of spiking neurons.

    In the loop, drive and states are tensors [B, N] and parameters tensors [N]. For the kernels the
    step runs once, on expressions (`derivative.py`), so it may use `+ - * /`, `**` with 2 or 3,
    comparisons, `& |`, `abs`, `torch.where`, `clamp`, `exp` of this module, and functions made of
    these, but no `if` on a value.

    Attributes:
        name: name of the model.
        parameters: names of the parameters, each with one value per neuron.
        states: names of the states carried from step to step, each initially 0. The first is the
            membrane; once NaN or Inf, it must stay so.
        step: (drive, parameters, constants, state, fire) → spike, membrane, threshold, states after
            the step. `state` holds the states, then the counters; `constants` are 0, 1 and the
            numbers given to `simulate`. `fire(membrane, threshold)` returns the spike, 1 if the
            membrane is above the threshold, and 1 − spike for the reset, whose gradient can be
            switched off.
        counters: names of further states, which carry no gradient.
        reverse_step: (drive, parameters, constants, state, margin, slope, grad_spike,
            reset_has_grad, grad_state) → gradients of drive, parameters and states before the step,
            for a gradient that is not the step's derivative; None = the derivative. `margin` is
            V − θ, `slope` the surrogate's derivative there.
        accumulators: names of numbers that only `reverse_step` carries from step to step, in
            `grad_state` after the gradients of the states.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> def step(drive, parameters, constants, state, fire):
        ...     zero, one = constants
        ...     membrane = parameters[0] * state[0] + drive
        ...     spike, not_spiked = fire(membrane, one)
        ...     return spike, membrane, one, (membrane * not_spiked,)
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
    counters: tuple[str, ...] = ()
    reverse_step: Callable[..., Any] | None = None
    accumulators: tuple[str, ...] = ()
    key: str = field(init=False, compare=False, repr=False)

    def __post_init__(self):
        # Operators of torch know a model by this text, also in a file of torch.export.
        key, n = self.name, 1
        while _registered.setdefault(key, self) != self:
            n += 1
            key = f"{self.name} ({n})"
        object.__setattr__(self, "key", key)

    @property
    def all_states(self) -> tuple[str, ...]:
        """Names of the states, then of the counters."""
        return (*self.states, *self.counters)


def model_of(key: str) -> NeuronModel:
    """The model with this `key`."""
    return _registered[key]


def where(condition: Any, x: Any, y: Any) -> Any:
    """Select x where the condition holds, else y."""
    return torch.where(condition, x, y)


def maximum(x: Any, least: Any) -> Any:
    """Maximum of x and `least`."""
    return x.clamp(min=least)


def exp(x: Any) -> Any:
    """Exponential for steps, to a few ulp (float64: 1e−12), with the same bits in loop and kernels.

    `torch.exp` is faster in the loop, but rounds in its own way, so spikes of the loop and of the
    kernels could differ.
    """
    return _Exp.apply(x) if isinstance(x, Tensor) else x.exp()


class _Exp(torch.autograd.Function):
    """The arithmetic of `cpu/exponential.py`, operation by operation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        from blockspike.neurons.cpu.exponential import COEFFICIENTS, LN2, MOST

        bits, bias, mantissa = (
            (torch.int32, 127, 23) if x.dtype == torch.float32 else (torch.int64, 1023, 52)
        )
        most = MOST[x.dtype.itemsize]
        t = x * (1 / LN2)
        clipped = t.clamp(-most, most)
        k = (clipped + torch.where(clipped < 0, -0.5, 0.5).to(x)).trunc()
        first, *others = COEFFICIENTS[x.dtype.itemsize]
        r = x - k * LN2
        y = torch.full_like(r, first)
        for coefficient in others:
            y = y * r + coefficient
        y = y * ((k.to(bits) + bias) << mantissa).view(x.dtype)
        return torch.where(t < -most, 0.0, torch.where(t > most, torch.inf, y)).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0] * ctx.saved_tensors[0]
