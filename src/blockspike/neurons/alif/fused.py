"""ALIF in one pass over time, by kernels, with the spikes and gradient of `standard.py`."""

from functools import partial

import torch
from torch import Tensor

from blockspike.neurons.alif.step import ALIF, ALIF_ALWAYS_OPEN
from blockspike.neurons.model import SimulationSpec
from blockspike.neurons.simulate import run_kernels
from blockspike.neurons.surrogate import Surrogate
from blockspike.neurons.trace import SpikeTrace, threshold_of


def fused(
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
) -> SpikeTrace:
    """Simulate ALIF with the kernels; arguments as in `alif`, already checked.

    Without a refractory period, a model without its counter saves a tenth of the time.
    """
    parameters = [beta, *(torch.zeros_like(beta) if x is None else x for x in (p, b))]
    model, arps = (ALIF, (float(min(arp, len(current))),)) if arp else (ALIF_ALWAYS_OPEN, ())
    spec = SimulationSpec(model, arps, recurrent_delay, surrogate, detach_spikes)
    compute_threshold = partial(threshold_of, p=p, b=b)
    return run_kernels(
        spec, current, parameters, recurrent_weight, compute_threshold=compute_threshold
    )
