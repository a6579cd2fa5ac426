"""adLIF, with recurrence RadLIF: adaptive neurons with a soft reset."""

from blockspike.neurons.adlif.step import ADLIF, adlif

__all__ = ["ADLIF", "adlif"]
