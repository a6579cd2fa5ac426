"""One pass over time on a GPU, for every neuron model."""
