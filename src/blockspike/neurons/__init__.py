"""Spiking neurons as pure functions on tensors [T, B, N] = time steps, batch, neurons."""

from blockspike.neurons.alif import ALIFTrace, Method, NotFiniteError, alif
from blockspike.neurons.readout import leaky_integrate
from blockspike.neurons.surrogate import Boxcar, FastSigmoid, MultiGaussian, Surrogate

__all__ = [
    "ALIFTrace",
    "Boxcar",
    "FastSigmoid",
    "Method",
    "MultiGaussian",
    "NotFiniteError",
    "Surrogate",
    "alif",
    "leaky_integrate",
]
