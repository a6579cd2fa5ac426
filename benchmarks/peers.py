"""Layers of other libraries: the closest that each has to an ALIF layer.

Where a library has the parameter, β = p = 0.9, b = 1, reset is to zero without a gradient, and the
surrogate is the fast sigmoid. Each library is imported only when one of its layers is made.
"""

import importlib
import math
import warnings
from collections.abc import Callable
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import SCAN, Contender, Size

_DECAY = 0.9  # β and p, per step
_RAISE = 1.0  # b, the rise of the threshold per spike
_SLOPE = 10.0  # of the fast sigmoid


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


def _snntorch(size: Size) -> nn.Module:
    snntorch = _import("snntorch")
    spike = _import("snntorch.surrogate").fast_sigmoid(_SLOPE)
    make_neurons = partial(snntorch.Leaky, _DECAY)
    if size.recurrent:  # resets by subtraction; a reset to zero takes two recurrent products a step
        make_neurons = partial(snntorch.RLeaky, _DECAY, linear_features=size.n_units)
    return _Layer(
        nn.Linear(size.n_inputs, size.n_units),
        make_neurons(spike_grad=spike, init_hidden=True),
        run=_step_by_step,
        reset=lambda neurons: neurons.reset_mem(),
    )


def _norse(size: Size, compiled: bool = False) -> nn.Module:
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
    synapses = nn.Linear(size.n_inputs, size.n_units)
    with torch.no_grad():
        synapses.weight /= 1 - _DECAY  # the membrane scales the current by 1 − β
    if size.recurrent:
        neurons = norse.LSNNRecurrent(
            size.n_inputs, size.n_units, input_weights=synapses.weight, autapses=True, **options
        )
        synapses = nn.Identity()
    else:
        neurons = norse.LSNNCell(**options)
    if compiled:
        neurons.activation = torch.compile(_with_own_code(neurons.activation), fullgraph=True)
    return _Layer(synapses, neurons, run=_run_norse if size.recurrent else _run_norse_cell)


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


def _spikingjelly(size: Size, make_neurons: Callable[..., nn.Module]) -> nn.Module:
    """Make a layer of `make_neurons(step_mode=…)`: "m" takes sequences, "s" single steps."""
    if size.recurrent:
        container = _import("spikingjelly.activation_based.layer").LinearRecurrentContainer
        neurons = container(make_neurons(step_mode="s"), size.n_units, size.n_units, bias=False)
        with torch.no_grad():  # its weights multiply [current, spikes]: pass the current through
            neurons.rc.weight[:, : size.n_units] = torch.eye(size.n_units)
    else:
        neurons = make_neurons(step_mode="m")
    return _Layer(
        nn.Linear(size.n_inputs, size.n_units),
        neurons,
        run=_step_by_step if size.recurrent else lambda neurons, current: neurons(current),
        reset=_import("spikingjelly.activation_based.functional").reset_net,
    )


def _spikingjelly_lif(size: Size) -> nn.Module:
    neuron = _import("spikingjelly.activation_based.neuron")
    surrogate = _import("spikingjelly.activation_based.surrogate")
    make_neurons = partial(
        neuron.LIFNode,
        1 / (1 - _DECAY),
        decay_input=False,
        surrogate_function=surrogate.SoftSign(_SLOPE),
        detach_reset=True,
    )
    return _spikingjelly(size, make_neurons)


def _spikingjelly_flexsn(size: Size) -> nn.Module:
    neuron = _import("spikingjelly.activation_based.neuron")
    spike = _import("spikingjelly.activation_based.surrogate").SoftSign.spiking_function

    def step(current: Tensor, membrane: Tensor, adaptation: Tensor) -> tuple[Tensor, ...]:
        membrane = _DECAY * membrane + current
        spikes = spike(membrane - (1 + _RAISE * adaptation), _SLOPE)
        return spikes, membrane * (1 - spikes.detach()), _DECAY * adaptation + spikes

    make_neurons = partial(neuron.FlexSN, step, num_states=2)
    return _spikingjelly(size, make_neurons)


def _sinabs(size: Size) -> nn.Module:
    layers, activation = _import("sinabs.layers"), _import("sinabs.activation")
    tau = -1 / math.log(_DECAY)  # steps
    make_neurons = partial(layers.ALIF, tau, tau)
    if size.recurrent:
        weights = nn.Linear(size.n_units, size.n_units, bias=False)
        make_neurons = partial(layers.ALIFRecurrent, tau, tau, weights)
    neurons = make_neurons(
        adapt_scale=_RAISE / (1 - _DECAY),  # a spike adds 1 − p to the adaptation
        reset_fn=activation.MembraneReset(),
        norm_input=False,
    )
    for name in ("tau_mem", "tau_adapt"):
        neurons.get_parameter(name).requires_grad_(False)
    return _Layer(
        nn.Linear(size.n_inputs, size.n_units),
        neurons,
        run=lambda neurons, current: neurons(current.transpose(0, 1)).transpose(0, 1),
        reset=_reset_sinabs,
    )


def _reset_sinabs(neurons) -> None:
    neurons.reset_states()
    neurons.firing_rate = None  # a tensor that holds the graph


def _jax(name: str, size: Size) -> nn.Module:
    return getattr(_import("benchmarks.jax_peers"), name)(size)


_NORSE_DIFFERS = (
    "no refractory period; current and recurrent spikes act a step later, times 1 − β; input "
    "weights applied step by step and no gradient through the adaptation if recurrent, gradient "
    "through the reset if not; surrogate of slope 1"
)
_SPIKINGJELLY_DIFFERS = (
    "no refractory period; recurrent weights multiply [current, spikes], step by step; surrogate "
    "times 5"
)
PEERS = {
    "snnTorch": Contender(
        _snntorch,
        "no adaptation, no refractory period; reset subtracts the threshold; recurrent weights "
        "with bias",
        "RLeaky (Leaky)",
    ),
    "Norse": Contender(_norse, _NORSE_DIFFERS, "LSNNRecurrent (LSNNCell)"),
    "Norse (torch.compile)": Contender(
        partial(_norse, compiled=True),
        f"{_NORSE_DIFFERS}; the step is compiled, the loop over steps is not",
        "LSNNRecurrent (LSNNCell)",
    ),
    "SpikingJelly (LIFNode)": Contender(
        _spikingjelly_lif,
        f"no adaptation, {_SPIKINGJELLY_DIFFERS}",
        "LinearRecurrentContainer of LIFNode (LIFNode)",
    ),
    "SpikingJelly (FlexSN)": Contender(
        _spikingjelly_flexsn,
        f"{_SPIKINGJELLY_DIFFERS}; ALIF step written by us",
        "LinearRecurrentContainer of FlexSN (FlexSN)",
    ),
    "sinabs": Contender(
        _sinabs,
        "no refractory period; no gradient through the threshold; exponential surrogate; its "
        "loop costs O(T²) backward",
        "ALIFRecurrent (ALIF)",
    ),
    SCAN: Contender(
        partial(_jax, "scan_layer"),
        "dense synapses; sums are rounded in another order",
        "ALIF written by us, a compiled scan",
        in_jax=True,
    ),
    "Spyx": Contender(
        partial(_jax, "spyx_layer"),
        "no refractory period, no recurrent layer; gradient through the reset, which subtracts "
        "the threshold; a spike raises the threshold by 1 − p",
        has_recurrent=False,
        in_jax=True,
    ),
    "BrainPy": Contender(
        partial(_jax, "brainpy_layer"),
        "no refractory period, no recurrent layer; reset a step later; surrogate ReLU",
        "brainpy.state.ALIF",
        has_recurrent=False,
        in_jax=True,
    ),
}
