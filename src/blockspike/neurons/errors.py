"""`NotFiniteError`, and the search for NaN and Inf."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blockspike.neurons.model import NeuronModel


class NotFiniteError(ValueError):
    """NaN or Inf in an argument or a state; `neuron` is the first affected one, if known.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.full((10, 1, 2), float("nan"))
        >>> try:
        ...     bs.alif(current, torch.tensor([0.9, 0.9]))
        ... except bs.NotFiniteError as error:
        ...     print(error.neuron)
        0
    """

    def __init__(self, message: str, neuron: int | None = None):
        super().__init__(message)
        self.neuron = neuron


def check_values(
    model: NeuronModel, parameters: Tensor, weight: Tensor | None, values: Tensor | None,
    before: Tensor | None, steps: Tensor | None,
) -> None:  # fmt: skip
    """Raise NotFiniteError for a NaN or Inf, and ValueError for spikes before that are not 0 or 1.

    The check of the membrane would miss these: with a NaN in the threshold, a neuron just does not
    spike. Arguments as in `ops.simulate`.
    """
    given = (parameters, weight, values, steps)
    # One sum proves that all are finite; it may overflow, so that only then each is looked at.
    if not all(x is None or math.isfinite(x.sum().item()) for x in given):
        named = dict(zip(model.parameters, parameters, strict=True))
        names = ("recurrent_weight", "state", "recurrent_delay")
        named |= {k: x for k, x in zip(names, given[1:], strict=True) if x is not None}
        for name, value in named.items():
            if len(bad := value[~torch.isfinite(value)]):
                raise NotFiniteError(
                    f"{name}: expected finite values, got {bad[0].item()} ({len(bad)} such values)"
                )
    if before is not None and not torch.equal(before, (before != 0).to(before.dtype)):
        raise ValueError("state: spikes: expected values of 0 or 1, got others")


def check_finite(last_states: Tensor, current: Tensor, names: Sequence[str]) -> None:
    """Raise NotFiniteError if a state became NaN or Inf.

    Either one persists, so checking the last states [K, B, N], of these K names, is enough. The
    current is searched for the place only if that check fails.
    """
    if math.isfinite(last_states.sum().item()) or torch.isfinite(last_states).all():
        return
    bad = (~torch.isfinite(current)).nonzero()
    if len(bad):
        t, sample, neuron = bad[0].tolist()
        message = (
            f"current: expected finite values, got {current[t, sample, neuron].item()} "
            f"at step {t}, sample {sample}, neuron {neuron} ({len(bad)} such values)"
        )
    else:
        state, _, neuron = (~torch.isfinite(last_states)).nonzero()[0].tolist()
        message = (
            f"{names[state]}: expected finite values, got NaN or Inf from a finite current; "
            "the parameters or recurrent_weight make it overflow"
        )
    raise NotFiniteError(message, neuron)
