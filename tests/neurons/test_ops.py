"""Operators of PyTorch: `torch.library.opcheck` for each of them, with every kind of argument."""

import pytest
import torch
from neuron_cases import make_inputs
from torch import Tensor
from torch.library import opcheck

import blockspike.networks.delays  # noqa: F401 (it registers operators)
from blockspike.networks import synapses  # noqa: F401
from blockspike.neurons import readout  # noqa: F401
from blockspike.neurons.alif import ALIF
from blockspike.neurons.events import EventBatch

OPS = torch.ops.blockspike
# opcheck itself reads gradients so, with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def arguments(
    *, recurrent: bool, delays: bool = False, start: bool = False, membrane: bool = False
) -> tuple:
    inputs = make_inputs((12, 2, 3), recurrent=recurrent, dtype=torch.float32)
    parameters = torch.stack([inputs[name].detach() for name in ("beta", "p", "b")])
    generator = torch.Generator().manual_seed(0)
    values = before = steps = span = None
    if start:
        values = torch.rand(3, 2, 3, generator=generator)
        values[2] = 1.0  # steps of the refractory period that are left
        values.requires_grad_()
        if recurrent:
            before = (torch.rand(4, 2, 3, generator=generator) < 0.2).float().requires_grad_()
    if delays:
        steps, span = torch.tensor([1.0, 3.0, 4.0], requires_grad=True), torch.tensor(2)
    given = (inputs["current"], parameters.requires_grad_(), inputs.get("recurrent_weight"))
    settings = (ALIF.key, [2.0], "MultiGaussian", [1.0, 1.0], 4, False, False, membrane, True)
    return (*given, values, before, steps, span, *settings)


@pytest.mark.parametrize(
    "kind",
    [
        {"recurrent": False},
        {"recurrent": False, "start": True, "membrane": True},
        {"recurrent": True, "start": True},
        {"recurrent": True, "delays": True, "start": True, "membrane": True},
    ],
)
def test_simulation(kind):
    args = arguments(**kind)
    opcheck(OPS.simulate.default, args)
    spikes, last, membrane, threshold, spike_bytes, drives, saved = OPS.simulate(*args)
    assert 0 < spikes.sum() < spikes.numel()
    current, parameters, weight, _, before, steps, span, *settings, _, _ = args
    drives = current.flatten(1) if weight is None else drives
    level = (membrane, threshold) if kind.get("membrane") else (None, None)
    given = (spikes, last, *level, drives, saved, parameters, weight, before, steps, span)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in given]
    fired = None if weight is None else spike_bytes
    needs = [True, weight is not None, "start" in kind, before is not None]
    opcheck(OPS.simulate_backward.default, (*detached, fired, *settings, needs))


def test_leaky_integrator():
    x, beta = torch.rand(7, 2, 3, requires_grad=True), torch.rand(3, requires_grad=True)
    for reverse in (False, True):
        opcheck(OPS.leaky_integrate.default, (x, beta, reverse))


@pytest.mark.parametrize("mode", ["auto", "events"])
def test_synapses(mode):
    spikes = (torch.rand(7, 2, 5, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    weight, bias = torch.rand(2, 3, 5, requires_grad=True), torch.rand(3, requires_grad=True)
    events = EventBatch.from_dense(spikes)
    found = (events.row_ptr, events.unit)
    dense = spikes.clone().requires_grad_()
    opcheck(OPS.event_currents.default, (weight, bias, None, *found, 7, 1.0, mode))
    opcheck(OPS.event_currents.default, (weight, bias, dense, None, None, 7, 1.0, mode))
    grad = torch.rand(7, 2, 3)
    for given in ((None, *found), (spikes, None, None)):
        opcheck(OPS.event_weight_gradient.default, (grad, weight.detach(), *given, 1.0))


@pytest.mark.parametrize("n_units", [3, 11])  # within a group of neurons, and not
def test_synapses_with_delays(n_units):
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand(7, 5, 6, generator=generator) < 0.3).float()
    weight, delay = torch.rand(2, n_units, 6, generator=generator).requires_grad_()
    events, span = EventBatch.from_dense(spikes), torch.tensor(2)
    bias = torch.rand(n_units, requires_grad=True)
    for found, dense in (((events.row_ptr, events.unit), None), ((None, None), spikes)):
        full = torch.ones_like(spikes) if dense is not None else spikes  # leaves no room unused
        opcheck(OPS.sorted_spikes.default, (full, *found))
        by_unit = OPS.sorted_spikes(spikes, *found)
        leaves = [x.detach().requires_grad_() for x in (weight, 4 * delay, bias)]
        given = None if dense is None else dense.clone().requires_grad_()
        opcheck(OPS.delayed_currents.default, (*leaves, given, *by_unit, [7, 5], 4, span))
        args = (torch.rand(7, 5, n_units), weight.detach(), 4 * delay.detach(), *by_unit, span, 4)
        opcheck(OPS.delayed_current_sums.default, (*args, dense is not None))
