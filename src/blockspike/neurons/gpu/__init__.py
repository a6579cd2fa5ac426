"""Kernels that simulate any neuron model in one pass over time on a GPU."""
