"""Spiking neurons as pure functions of tensors [T, B, N] = (time steps, batch, neurons)."""

from blockspike.neurons.alif import Method, NotFiniteError, SpikeTrace, alif
from blockspike.neurons.readout import leaky_integrate
from blockspike.neurons.surrogate import Boxcar, FastSigmoid, MultiGaussian, Surrogate

__all__ = [
    "Boxcar",
    "FastSigmoid",
    "Method",
    "MultiGaussian",
    "NotFiniteError",
    "SpikeTrace",
    "Surrogate",
    "alif",
    "leaky_integrate",
]
