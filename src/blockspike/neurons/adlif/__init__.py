"""adLIF and SE-adLIF: neurons whose adaptation is coupled to the membrane."""

from blockspike.neurons.adlif.step import ADLIF, SE_ADLIF, adlif

__all__ = ["ADLIF", "SE_ADLIF", "adlif"]
