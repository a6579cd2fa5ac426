"""ALIF in one pass over time, by kernels, with the spikes and gradient of `standard.py`."""

from functools import partial

import torch
from torch import Tensor

from blockspike.neurons.alif.step import ALIF
from blockspike.neurons.model import NeuronModel, SimulationSpec
from blockspike.neurons.simulate import run_kernels
from blockspike.neurons.state import Start
from blockspike.neurons.surrogate import Surrogate
from blockspike.neurons.trace import SpikeTrace, threshold_of, trace_of


def fused(
    model: NeuronModel,
    current: Tensor,
    beta: Tensor,
    p: Tensor | None,
    b: Tensor | None,
    *,
    arp: int,
    recurrent_weight: Tensor | None,
    recurrent_delay: int,
    surrogate: Surrogate,
    detach_spikes: bool,
    start: Start | None,
    membrane_gradient: bool,
) -> SpikeTrace:
    """Simulate ALIF with the kernels; arguments as in `alif`, already checked.

    Without a refractory period, a model without its counter saves a tenth of the time.
    """
    parameters = [beta, *(torch.zeros_like(beta) if x is None else x for x in (p, b))]
    constants = (float(arp),) if model is ALIF else ()
    spec = SimulationSpec(model, constants, recurrent_delay, surrogate, detach_spikes)
    simulation = run_kernels(spec, current, parameters, recurrent_weight, start, membrane_gradient)
    compute_threshold = partial(threshold_of, p=p, b=b, start=start)
    return trace_of(simulation, recurrent_weight is not None, compute_threshold)
