"""Spiking neurons as pure functions of tensors [T, B, N] = (time steps, batch, neurons)."""

from blockspike.neurons.alif import Method, alif
from blockspike.neurons.errors import NotFiniteError
from blockspike.neurons.readout import leaky_integrate
from blockspike.neurons.surrogates import (
    SLAYER,
    Arctan,
    Boxcar,
    FastSigmoid,
    MultiGaussian,
    Surrogate,
    Triangular,
)
from blockspike.neurons.trace import SpikeTrace

__all__ = [
    "SLAYER",
    "Arctan",
    "Boxcar",
    "FastSigmoid",
    "Method",
    "MultiGaussian",
    "NotFiniteError",
    "SpikeTrace",
    "Surrogate",
    "Triangular",
    "alif",
    "leaky_integrate",
]
