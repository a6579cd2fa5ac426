"""SE-adLIF and EF-adLIF: neurons whose adaptation is coupled to the membrane."""

from blockspike.neurons.euler_adlif.step import EF_ADLIF, SE_ADLIF, euler_adlif

__all__ = ["EF_ADLIF", "SE_ADLIF", "euler_adlif"]
