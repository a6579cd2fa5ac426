"""Spiking neurons as pure functions of tensors [T, B, N] = (time steps, batch, neurons)."""

from blockspike.neurons.alif import Method, NotFiniteError, SpikeTrace, alif
from blockspike.neurons.readout import leaky_integrate
from blockspike.neurons.surrogate import (
    SLAYER,
    Arctan,
    Boxcar,
    FastSigmoid,
    MultiGaussian,
    Surrogate,
    Triangular,
)

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
