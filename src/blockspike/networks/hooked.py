"""A classifier as `nn.Linear` and `nn.ReLU` modules, for tools that count by hooks."""

from typing import cast

from torch import Tensor, nn

from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layer import NeuronLayer


class HookedClassifier(nn.Module):
    """A `SpikingClassifier` whose spikes and weights tools with hooks, such as NeuroBench, see.

    blockspike simulates a layer in one pass over time, so it calls no module that holds a weight,
    and a tool that counts synaptic operations or sparsity by hooks finds nothing to count. This
    module simulates the network, and then sends the spikes through an `nn.Linear` for each weight,
    which it shares with the network, and an `nn.ReLU` for each hidden layer, which leaves 0 and 1
    as they are. That is as slow as dense products are: use it for counting only.

    A spike counts at all of its neuron's synapses, whether or not a delay lets it arrive before the
    sample ends.

    Args:
        network: the classifier; it is not changed.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> network = bs.HookedClassifier(bs.SpikingClassifier(20, 3, n_hidden=5, dt_ms=1.0))
        >>> network(torch.ones(4, 30, 20)).shape  # batch first, as these tools expect
        torch.Size([4, 3])
    """

    def __init__(self, network: SpikingClassifier):
        super().__init__()
        self.network = network
        layers = [layer for layer in network.layers if isinstance(layer, NeuronLayer)]
        self.feedforward = nn.ModuleList(_linear(x.weight) for x in (*layers, network.readout))
        self.recurrent = nn.ModuleDict(
            {str(i): _linear(x.recurrent_weight) for i, x in enumerate(layers)
             if x.recurrent_weight is not None}
        )  # fmt: skip
        self.spikes = nn.ModuleList(nn.ReLU() for _ in layers)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B, n_classes] for spikes [B, T, n_inputs]."""
        first = self.network.batch_first
        output = self.network(x if first else x.transpose(0, 1))
        hidden = [spikes if first else spikes.transpose(0, 1) for spikes in output.spikes]
        for module, spikes in zip(self.spikes, hidden, strict=True):
            module(spikes)
        for linear, spikes in zip(self.feedforward, (x, *hidden), strict=True):
            linear(spikes)
        for i, linear in self.recurrent.items():
            linear(hidden[int(i)])
        return output.scores


def _linear(weight: Tensor) -> nn.Linear:
    """A linear module, without bias, that shares a weight [n_units, n_inputs]."""
    n_units, n_inputs = weight.shape
    linear = nn.Linear(n_inputs, n_units, bias=False, device="meta")
    linear.weight = cast(nn.Parameter, weight)
    return linear
