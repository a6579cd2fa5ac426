"""Adaptive neurons whose adaptation couples to the membrane: adLIF and SE-adLIF."""

from blockspike.neurons.adlif.step import ADLIF, SE_ADLIF, adlif

__all__ = ["ADLIF", "SE_ADLIF", "adlif"]
