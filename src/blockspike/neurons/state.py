"""`NeuronState`: what a simulation needs of the one before it, and how it is given."""

import json
import math
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor

from blockspike.neurons.autograd import is_transformed
from blockspike.neurons.errors import NotFiniteError
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.spec import SimulationSpec


def as_indices(samples: Any) -> Any:
    """Indices that keep the dimension of samples: a single index as a list, others as they are."""
    is_single = isinstance(samples, Integral) or getattr(samples, "ndim", 1) == 0
    return [operator.index(samples)] if is_single else samples


class Changeable:
    """Tensors that a subclass changes together by its method `map`."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with each tensor changed."""
        raise NotImplementedError

    def detach(self) -> Self:
        """A copy with the same values, through which no gradient flows."""
        return self.map(Tensor.detach)

    def clone(self) -> Self:
        """A copy, through which gradients flow."""
        return self.map(Tensor.clone)

    def to(self, *args: Any, **options: Any) -> Self:
        """A copy on another device or of another dtype; arguments as in `torch.Tensor.to`."""
        return self.map(lambda x: x.to(*args, **options))


@dataclass(frozen=True, eq=False)
class NeuronState(Changeable):
    """State of a population after a simulation; `state=` of the next call continues from it.

    `trace.state` has one. Gradients flow through it unless it is detached.

    Attributes:
        model: name of the neuron model.
        names: names of the states, in the order of `values`.
        values: [K, B, N], one row per name.
        spikes: [D, B, N], 0 or 1: spikes of the last D steps, the oldest first, that synapses with
            delays of up to D steps have yet to deliver; None without recurrence.
        inputs: [K, B, n_inputs], the last steps of a layer's input, which its synapses have yet to
            deliver; None if they have no delays, and outside layers.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current, beta = torch.full((30, 4, 1), 0.3), torch.tensor([0.9])
        >>> first = bs.alif(current[:10], beta, arp=2)
        >>> second = bs.alif(current[10:], beta, arp=2, state=first.state)
        >>> whole = bs.alif(current, beta, arp=2)
        >>> torch.equal(torch.cat([first.spikes, second.spikes]), whole.spikes)
        True
        >>> first.state[:2]
        NeuronState of alif: membrane, adaptation, refractory_left [2, 1]
    """

    model: str
    names: tuple[str, ...]
    values: Tensor
    spikes: Tensor | None = None
    inputs: Tensor | None = None

    def as_dict(self) -> dict[str, Tensor]:
        """The states by name, each [B, N], "spikes" and "inputs"; `state=` takes this too."""
        own = dict(zip(self.names, self.values.unbind(), strict=True))
        delayed = {"spikes": self.spikes, "inputs": self.inputs}
        return own | {name: x for name, x in delayed.items() if x is not None}

    def __getitem__(self, samples: Any) -> "NeuronState":
        """The state of some samples: an index, a slice, or a list or tensor of indices."""
        chosen = as_indices(samples)
        return self.map(lambda x: x[:, chosen])

    def __len__(self) -> int:
        """Number of samples B."""
        return self.values.shape[1]

    def __repr__(self) -> str:
        sizes = list(self.values.shape[1:])
        delayed = "" if self.spikes is None else f", spikes of the last {len(self.spikes)} steps"
        return f"NeuronState of {self.model}: {', '.join(self.names)} {sizes}{delayed}"

    def map(self, change: Callable[[Tensor], Tensor]) -> "NeuronState":
        """The state with each of its tensors changed; samples are in dimension 1."""
        delayed = (None if x is None else change(x) for x in (self.spikes, self.inputs))
        return NeuronState(self.model, self.names, change(self.values), *delayed)

    def save(self, path: str | os.PathLike) -> None:
        """Write the state to a file of plain tensors (safetensors)."""
        from safetensors.torch import save_file

        tensors = {name: x.detach().contiguous() for name, x in self.as_dict().items()}
        about = {"model": self.model, "names": json.dumps(self.names)}
        save_file(tensors, path, about)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "NeuronState":
        """Read a file that `save` wrote; nothing is unpickled.

        Raises:
            ValueError: the file holds no state.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            names = tuple(json.loads(about["names"]))
            values = torch.stack([tensors[name] for name in names])
            delayed = (tensors.get(name) for name in ("spikes", "inputs"))
            return cls(about["model"], names, values, *delayed)
        except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a state that NeuronState.save wrote ({error})"
            ) from None


State = NeuronState | Mapping[str, Tensor | float]
"""A state of the simulation before, or values by name; those left out are 0."""


class Start(NamedTuple):
    """State [K, B, N] at the start of a simulation, and the spikes [D, B, N] still on their way."""

    values: Tensor
    spikes: Tensor | None


def start_of(
    state: State | None, model: NeuronModel, current: Tensor, delay: int | None
) -> Start | None:
    """Check a state against the model and the current [T, B, N]; None stays None.

    Args:
        state: given by the user.
        model: the neurons' model.
        current: the current, already checked.
        delay: delay of the recurrence in steps; None = no recurrence.

    Raises:
        ValueError: the state is of another model, shape, dtype or device.
        NotFiniteError: it holds NaN or Inf.
    """
    if state is None:
        return None
    names = (*model.states, *model.counters)
    size = tuple(current.shape[1:])
    dtype = torch.float32 if current.dtype == torch.bfloat16 else current.dtype
    if isinstance(state, NeuronState):
        if (state.model, state.names) != (model.name, names):
            raise ValueError(f"state: expected a state of {model.name}, got {state!r}")
        values, spikes = state.values, state.spikes
        _check("state", values, (len(names), *size), dtype, current)
        if delay is not None and spikes is None:
            raise ValueError("state: expected one of neurons with recurrence, got one without")
    elif isinstance(state, Mapping):
        known = (*names, "spikes")
        for name in state:
            if name not in known:
                raise ValueError(f"state: expected some of {', '.join(known)}, got {name!r}")
        rows = [_row(name, state.get(name, 0.0), size, dtype, current) for name in names]
        values, spikes = torch.stack(rows), state.get("spikes")
        if delay is not None and spikes is None:
            spikes = current.new_zeros(delay, *size)
    else:
        raise ValueError(
            f"state: expected trace.state or a dict of values by name, got {type(state).__name__}"
        )
    if delay is None:
        spikes = None
    else:
        _check("state: spikes", spikes, (delay, *size), current.dtype, current)
        given = cast(Tensor, spikes)
        if not is_transformed() and not torch.equal(given, (given != 0).to(given.dtype)):
            raise ValueError("state: spikes: expected values of 0 or 1, got others")
    # A finite sum is the quicker proof; a sum of huge values may overflow.
    known = values.detach()
    if not is_transformed() and not math.isfinite(known.sum()) and not torch.isfinite(known).all():
        raise NotFiniteError("state: expected finite values, got NaN or Inf")
    return Start(values, spikes)  # pyright: ignore[reportArgumentType]


def _row(
    name: str, value: Any, size: tuple[int, ...], dtype: torch.dtype, current: Tensor
) -> Tensor:
    if isinstance(value, int | float):
        return current.new_full(size, float(value), dtype=dtype)
    if not isinstance(value, Tensor):
        raise ValueError(
            f"state: {name}: expected a tensor or a number, got {type(value).__name__}"
        )
    if value.ndim > 2 or any(
        n not in (1, of) for n, of in zip(value.shape[::-1], size[::-1], strict=False)
    ):
        raise ValueError(f"state: {name}: expected shape {list(size)}, got {list(value.shape)}")
    _check(f"state: {name}", value, tuple(value.shape), dtype, current)
    return value.expand(size)


def _check(
    what: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype, current: Tensor
) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{what}: expected shape {list(shape)}, got {got}")
    if value.dtype != dtype or value.device != current.device:
        raise ValueError(
            f"{what}: expected {dtype} on {current.device}, got {value.dtype} on {value.device}"
        )


def last_state(
    spec: SimulationSpec, recurrent: bool, last: Tensor, spikes: Tensor, before: Tensor | None
) -> NeuronState:
    """State after a simulation.

    Args:
        spec: the model and settings.
        recurrent: whether spikes are fed back.
        last: states after the last step, [K, B, N].
        spikes: [T, B, N].
        before: spikes [D, B, N] of the D steps before, D the longest delay; None = none.
    """
    model, delay, delayed = spec.model, spec.longest_delay, None
    if recurrent:
        if spec.detach_recurrence:
            before, spikes = None if before is None else before.detach(), spikes.detach()
        if len(spikes) >= delay:
            delayed = spikes[-delay:].clone()  # a view would keep all of them in memory
        else:
            if before is None:
                before = spikes.new_zeros(delay, *spikes.shape[1:])
            delayed = torch.cat([before[len(spikes) :], spikes])
    return NeuronState(model.name, (*model.states, *model.counters), last, delayed)
