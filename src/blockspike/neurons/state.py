"""`NeuronState`: what a simulation needs of the one before it, and how it is given."""

import json
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from blockspike.neurons.model import NeuronModel


def as_indices(samples: Any) -> Any:
    """Indices that keep the dimension of samples: a single index as a list, others as they are."""
    is_single = isinstance(samples, Integral) or getattr(samples, "ndim", 1) == 0
    return [operator.index(samples)] if is_single else samples


class Changeable:
    """Tensors that a subclass changes together by its method `map`."""

    map: Callable[..., Any]

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
        """Read a file that `save` wrote; nothing is unpickled."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        names = tuple(json.loads(about["names"]))
        values = torch.stack([tensors[name] for name in names])
        delayed = (tensors.get(name) for name in ("spikes", "inputs"))
        return cls(about["model"], names, values, *delayed)


_TENSORS = ("values", "spikes", "inputs")


def _flatten(state: NeuronState) -> tuple[list[Any], list[Any]]:
    return [getattr(state, name) for name in _TENSORS], [state.model, list(state.names)]


def _flatten_with_keys(state: NeuronState) -> tuple[list[tuple[pytree.KeyEntry, Any]], Any]:
    values, context = _flatten(state)
    keys: list[Any] = [pytree.GetAttrKey(name) for name in _TENSORS]
    return list(zip(keys, values, strict=True)), context


def _unflatten(values: Any, context: Any) -> NeuronState:
    model, names = context
    return NeuronState(model, tuple(names), *values)


# For torch.export, whose files hold networks that take and give states. Texts are in the context,
# since files cannot have them among the outputs.
pytree.register_pytree_node(
    NeuronState,
    _flatten,
    _unflatten,
    serialized_type_name="blockspike.NeuronState",
    to_dumpable_context=lambda context: context,
    from_dumpable_context=lambda context: context,
    flatten_with_keys_fn=_flatten_with_keys,
)

State = NeuronState | Mapping[str, Tensor | float]
"""A state of the simulation before, or values by name; those left out are 0."""


class Start(NamedTuple):
    """State [K, B, N] at the start of a simulation, and the spikes [D, B, N] still on their way."""

    values: Tensor | None = None
    spikes: Tensor | None = None


def start_of(
    state: State | None, model: NeuronModel, current: Tensor, dtype: torch.dtype, delay: int | None
) -> Start:
    """The state that a user gave, checked against the model and the current [T, B, N].

    Args:
        state: given by the user; None = 0.
        model: the neurons' model.
        current: the current, already checked.
        dtype: of the states.
        delay: delay of the recurrence in steps; None = no recurrence.

    Raises:
        ValueError: the state is of another model, shape, dtype or device.
    """
    if state is None:
        return Start()
    names, size = model.all_states, tuple(current.shape[1:])
    if isinstance(state, NeuronState):
        if (state.model, state.names) != (model.name, names):
            raise ValueError(f"state: expected a state of {model.name}, got {state!r}")
        values, spikes = state.values, state.spikes
    else:
        if unknown := [name for name in state if name not in (*names, "spikes")]:
            known = ", ".join((*names, "spikes"))
            raise ValueError(f"state: expected some of {known}, got {unknown[0]!r}")
        like = current.new_empty(0, dtype=dtype)
        rows = [torch.as_tensor(state.get(name, 0.0)).to(like) for name in names]
        values: Tensor = torch.stack([x.expand(size) for x in rows])
        spikes: Any = state.get("spikes")
        if delay is not None and spikes is None:
            spikes = current.new_zeros(delay, *size)
    expected = [("values", values, len(names), dtype)]
    if delay is not None:
        expected.append(("spikes", spikes, delay, current.dtype))
    for name, value, n_rows, kind in expected:
        found = None if value is None else (tuple(value.shape), value.dtype, value.device)
        if found != (wanted := ((n_rows, *size), kind, current.device)):
            raise ValueError(f"state: {name}: expected {wanted}, got {found}")
    return Start(values, None if delay is None else spikes)


def state_after(
    model: NeuronModel, last: Tensor, spikes: Tensor, weight: Tensor | None, start: Start,
    delay: int, detach: bool,
) -> NeuronState:  # fmt: skip
    """State after a simulation.

    Args:
        model: the neurons' model.
        last: states after the last step, [K, B, N].
        spikes: [T, B, N].
        weight: recurrent weights, which have yet to deliver the last spikes; None = none.
        start: the state before.
        delay: the longest delay of the recurrence in steps.
        detach: whether gradient stops at the spikes that are fed back.
    """
    delayed = None
    if weight is not None and len(spikes) >= delay:
        delayed = spikes[-delay:].clone()  # a view would keep all of them in memory
    elif weight is not None:
        before = start.spikes
        if before is None:
            before = spikes.new_zeros(delay, *spikes.shape[1:])
        delayed = torch.cat([before[len(spikes) :], spikes])
    if detach and delayed is not None:
        delayed = delayed.detach()
    return NeuronState(model.name, model.all_states, last, delayed)
