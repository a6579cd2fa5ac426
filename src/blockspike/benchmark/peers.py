"""Layers of other libraries for the speed benchmark: the closest each has to an ALIF layer.

A layer takes inputs [T, B, n_inputs] in float32 and returns spikes [T, B, n_units]; every call
starts at rest. Where a library has the parameter, β = p = 0.9, b = 1, reset is to zero without a
gradient, and the surrogate is the fast sigmoid. The libraries are in the extra `peers`; each is
imported only when one of its layers is made.
"""

import importlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_DECAY = 0.9  # β and p, per step
_RAISE = 1.0  # b, the rise of the threshold per spike
_SLOPE = 10.0  # of the fast sigmoid


@dataclass(frozen=True)
class Peer:
    """The layer of another library that is closest to an ALIF layer.

    Attributes:
        name: the library's name; in brackets the variant, if there are several.
        package: name of its distribution.
        neuron: class of the neurons; in brackets the one without recurrence, if different.
        differs: how it differs from an ALIF layer (β, p, b, refractory period, recurrent delay,
            surrogate).
        devices: types of devices that it runs on.
        has_recurrent: whether it has a recurrent layer.
        make: (n_inputs, n_units, recurrent, arp) → the layer; most have no refractory period.
            Raises ImportError without the package, and ValueError for a recurrent layer that the
            library does not have. Any error of the library, now or when the layer is called, is
            passed on.
    """

    name: str
    package: str
    neuron: str
    differs: str
    devices: tuple[str, ...]
    make: Callable[[int, int, bool, int], nn.Module]
    has_recurrent: bool = True


def version_of(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class _Layer(nn.Module):
    """Synapses for the whole sequence, then neurons.

    `reset` clears what the neurons keep from a call: the state and the graph.
    """

    def __init__(
        self,
        synapses: nn.Module,
        neurons: nn.Module,
        run: Callable[[Any, Tensor], Tensor],
        reset: Callable[[Any], object] = lambda neurons: None,
    ):
        super().__init__()
        self.synapses = synapses
        self.neurons = neurons
        self._run = run
        self._reset = reset

    def forward(self, inputs: Tensor) -> Tensor:
        try:
            return self._run(self.neurons, self.synapses(inputs))
        finally:
            self._reset(self.neurons)


def _import(name: str) -> ModuleType:
    with warnings.catch_warnings():
        # On import, Norse scripts three functions; the LSNN uses none of them.
        warnings.filterwarnings("ignore", ".*torch.jit.script.*deprecated", DeprecationWarning)
        return importlib.import_module(name)


def _step_by_step(neurons: nn.Module, current: Tensor) -> Tensor:
    # Iterating a tensor costs O(T) backward. Libraries that index it in their loop pay O(T²).
    return torch.stack([neurons(x) for x in current])


def _snntorch(n_inputs: int, n_units: int, recurrent: bool, arp: int) -> nn.Module:
    snntorch = _import("snntorch")
    spike = _import("snntorch.surrogate").fast_sigmoid(_SLOPE)
    make_neurons = partial(snntorch.Leaky, _DECAY)
    if recurrent:  # resets by subtraction; a reset to zero takes two recurrent products a step
        make_neurons = partial(snntorch.RLeaky, _DECAY, linear_features=n_units)
    return _Layer(
        nn.Linear(n_inputs, n_units),
        make_neurons(spike_grad=spike, init_hidden=True),
        run=_step_by_step,
        reset=lambda neurons: neurons.reset_mem(),
    )


def _norse(
    n_inputs: int, n_units: int, recurrent: bool, arp: int, compiled: bool = False
) -> nn.Module:
    norse = _import("norse.torch")
    dt = 1e-3  # s
    options = {
        "dt": dt,
        "p": norse.LSNNParameters(
            tau_syn_inv=torch.tensor(1 / dt),  # the synaptic current decays within a step
            tau_mem_inv=torch.tensor((1 - _DECAY) / dt),
            tau_adapt_inv=torch.tensor((1 - _DECAY) / dt),
            beta=torch.tensor(_RAISE / _DECAY),  # it decays once before it raises a threshold
        ),
    }
    synapses = nn.Linear(n_inputs, n_units)
    with torch.no_grad():
        synapses.weight /= 1 - _DECAY  # the membrane scales the current by 1 − β
    if recurrent:
        neurons = norse.LSNNRecurrent(
            n_inputs, n_units, input_weights=synapses.weight, autapses=True, **options
        )
        synapses = nn.Identity()
    else:
        neurons = norse.LSNNCell(**options)
    if compiled:
        neurons.activation = torch.compile(_with_own_code(neurons.activation), fullgraph=True)
    return _Layer(synapses, neurons, run=_run_norse if recurrent else _run_norse_cell)


def _run_norse(neurons: nn.Module, inputs: Tensor) -> Tensor:
    return neurons(inputs)[0]


def _run_norse_cell(neurons: nn.Module, current: Tensor) -> Tensor:
    spikes, state = [], None
    for x in current:
        s, state = neurons(x, state)
        spikes.append(s)
    return torch.stack(spikes)


def _with_own_code(function: FunctionType) -> FunctionType:
    """Copy a function so that torch.compile treats it as another one.

    It counts compilations per code object, and too many shapes in one process are an error.
    """
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__)


def _spikingjelly(
    n_inputs: int, n_units: int, recurrent: bool, make_neurons: Callable[..., nn.Module]
) -> nn.Module:
    """Make a layer of `make_neurons(step_mode=…)`: "m" takes sequences, "s" single steps."""
    if recurrent:
        container = _import("spikingjelly.activation_based.layer").LinearRecurrentContainer
        neurons = container(make_neurons(step_mode="s"), n_units, n_units, bias=False)
        with torch.no_grad():  # its weights multiply [current, spikes]: pass the current through
            neurons.rc.weight[:, :n_units] = torch.eye(n_units)
    else:
        neurons = make_neurons(step_mode="m")
    return _Layer(
        nn.Linear(n_inputs, n_units),
        neurons,
        run=_step_by_step if recurrent else lambda neurons, current: neurons(current),
        reset=_import("spikingjelly.activation_based.functional").reset_net,
    )


def _spikingjelly_lif(n_inputs: int, n_units: int, recurrent: bool, arp: int) -> nn.Module:
    neuron = _import("spikingjelly.activation_based.neuron")
    surrogate = _import("spikingjelly.activation_based.surrogate")
    make_neurons = partial(
        neuron.LIFNode,
        1 / (1 - _DECAY),
        decay_input=False,
        surrogate_function=surrogate.SoftSign(_SLOPE),
        detach_reset=True,
    )
    return _spikingjelly(n_inputs, n_units, recurrent, make_neurons)


def _spikingjelly_flexsn(n_inputs: int, n_units: int, recurrent: bool, arp: int) -> nn.Module:
    neuron = _import("spikingjelly.activation_based.neuron")
    spike = _import("spikingjelly.activation_based.surrogate").SoftSign.spiking_function

    def step(current: Tensor, membrane: Tensor, adaptation: Tensor) -> tuple[Tensor, ...]:
        membrane = _DECAY * membrane + current
        spikes = spike(membrane - (1 + _RAISE * adaptation), _SLOPE)
        return spikes, membrane * (1 - spikes.detach()), _DECAY * adaptation + spikes

    make_neurons = partial(neuron.FlexSN, step, num_states=2)
    return _spikingjelly(n_inputs, n_units, recurrent, make_neurons)


def _sinabs(n_inputs: int, n_units: int, recurrent: bool, arp: int) -> nn.Module:
    layers, activation = _import("sinabs.layers"), _import("sinabs.activation")
    tau = -1 / math.log(_DECAY)  # steps
    make_neurons = partial(layers.ALIF, tau, tau)
    if recurrent:
        weights = nn.Linear(n_units, n_units, bias=False)
        make_neurons = partial(layers.ALIFRecurrent, tau, tau, weights)
    neurons = make_neurons(
        adapt_scale=_RAISE / (1 - _DECAY),  # a spike adds 1 − p to the adaptation
        reset_fn=activation.MembraneReset(),
        norm_input=False,
    )
    for name in ("tau_mem", "tau_adapt"):
        neurons.get_parameter(name).requires_grad_(False)
    return _Layer(
        nn.Linear(n_inputs, n_units),
        neurons,
        run=lambda neurons, current: neurons(current.transpose(0, 1)).transpose(0, 1),
        reset=_reset_sinabs,
    )


def _reset_sinabs(neurons) -> None:
    neurons.reset_states()
    neurons.firing_rate = None  # a tensor that holds the graph


def _jax(n_inputs: int, n_units: int, recurrent: bool, arp: int) -> nn.Module:
    return _import("blockspike.benchmark.jax_peers").scan_layer(n_inputs, n_units, recurrent, arp)


def _of_jax_library(n_inputs: int, n_units: int, recurrent: bool, arp: int, name: str) -> nn.Module:
    if recurrent:
        raise ValueError("recurrent: expected False, since the library has no such ALIF layer")
    return getattr(_import("blockspike.benchmark.jax_peers"), name)(n_inputs, n_units)


_EVERYWHERE = ("cpu", "cuda")
_NORSE_DIFFERS = (
    "no refractory period; current and recurrent spikes act a step later, times 1 − β; input "
    "weights applied step by step and no gradient through the adaptation if recurrent, gradient "
    "through the reset if not; surrogate of slope 1"
)
_SPIKINGJELLY_DIFFERS = (
    "no refractory period; recurrent weights multiply [current, spikes], step by step; surrogate "
    "times 5"
)

PEERS = (
    Peer(
        name="snnTorch",
        package="snntorch",
        neuron="RLeaky (Leaky)",
        differs=(
            "no adaptation, no refractory period; reset subtracts the threshold; recurrent weights "
            "with bias"
        ),
        devices=_EVERYWHERE,
        make=_snntorch,
    ),
    Peer(
        name="Norse",
        package="norse",
        neuron="LSNNRecurrent (LSNNCell)",
        differs=_NORSE_DIFFERS,
        devices=_EVERYWHERE,
        make=_norse,
    ),
    Peer(
        name="Norse (torch.compile)",
        package="norse",
        neuron="LSNNRecurrent (LSNNCell)",
        differs=f"{_NORSE_DIFFERS}; the step is compiled, the loop over steps is not",
        devices=_EVERYWHERE,
        make=partial(_norse, compiled=True),
    ),
    Peer(
        name="SpikingJelly (LIFNode)",
        package="spikingjelly",
        neuron="LinearRecurrentContainer of LIFNode (LIFNode)",
        differs=f"no adaptation, {_SPIKINGJELLY_DIFFERS}",
        devices=_EVERYWHERE,
        make=_spikingjelly_lif,
    ),
    Peer(
        name="SpikingJelly (FlexSN)",
        package="spikingjelly",
        neuron="LinearRecurrentContainer of FlexSN (FlexSN)",
        differs=f"{_SPIKINGJELLY_DIFFERS}; ALIF step written by us",
        devices=_EVERYWHERE,
        make=_spikingjelly_flexsn,
    ),
    Peer(
        name="sinabs",
        package="sinabs",
        neuron="ALIFRecurrent (ALIF)",
        differs=(
            "no refractory period; no gradient through the threshold; exponential surrogate; its "
            "loop costs O(T²) backward"
        ),
        devices=_EVERYWHERE,
        make=_sinabs,
    ),
    Peer(
        name="JAX (lax.scan)",
        package="jax",
        neuron="ALIF written by us, a compiled scan",
        differs="dense synapses; sums are rounded in another order",
        devices=("cpu",),
        make=_jax,
    ),
    Peer(
        name="Spyx",
        package="spyx",
        neuron="ALIF",
        differs=(
            "no refractory period, no recurrent layer; gradient through the reset, which subtracts "
            "the threshold; a spike raises the threshold by 1 − p"
        ),
        devices=("cpu",),
        make=partial(_of_jax_library, name="spyx_layer"),
        has_recurrent=False,
    ),
    Peer(
        name="BrainPy",
        package="brainpy",
        neuron="brainpy.state.ALIF",
        differs="no refractory period, no recurrent layer; reset a step later; surrogate ReLU",
        devices=("cpu",),
        make=partial(_of_jax_library, name="brainpy_layer"),
        has_recurrent=False,
    ),
)
