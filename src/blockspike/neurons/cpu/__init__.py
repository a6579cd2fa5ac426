"""One pass over time on a CPU, for every neuron model."""
