"""C-SiLIF: neurons with a complex state, a learned time step and a learned frequency."""

from blockspike.neurons.c_silif.step import C_SILIF, c_silif

__all__ = ["C_SILIF", "c_silif"]
