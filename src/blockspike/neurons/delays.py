"""`RecurrentDelays`: a delay of each neuron's spikes on their way to the others, and its gradient.

Delays along axons are learned in DelRec (Queant et al., arXiv:2509.24852) by spreading each spike
over several steps. Here a spike arrives once, at a whole step.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RecurrentDelays:
    """Delays of each neuron's spikes on their way to the others, given as `recurrent_delay`.

    Their gradient is a difference: how the current would change if the spikes arrived `span` steps
    later rather than `span` steps earlier, both cut off at 1 and `longest`.

    Attributes:
        steps: [N], of the current's dtype, differentiable; rounded to 1 … `longest` whole steps.
        longest: the longest delay; a state holds the spikes of so many steps.
        span: reach of the difference, in steps; an int, or a tensor [] int64 if it changes, for
            which `torch.compile` would otherwise compile again.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> delays = bs.RecurrentDelays(torch.tensor([1.0, 4.0]), longest=5)
        >>> current, weight = torch.zeros(10, 1, 2), 2 * torch.ones(2, 2)
        >>> current[0, 0, 1] = 2.0  # the second neuron spikes first
        >>> beta = torch.zeros(2)
        >>> trace = bs.alif(current, beta, recurrent_weight=weight, recurrent_delay=delays)
        >>> trace.spikes[:6, 0, 0].int().tolist()
        [0, 0, 0, 0, 1, 1]
    """

    steps: Tensor
    longest: int
    span: int | Tensor = 1

    @cached_property
    def whole(self) -> Tensor:
        """The delays as whole steps, int64 [N], as they were when first read."""
        return self.steps.detach().round().long().clamp(1, self.longest)

    @property
    def shortest(self) -> int:
        """The shortest of the delays in steps."""
        return int(self.whole.min())

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Delays between which the difference is taken, each int64 [N]."""
        whole = self.whole
        return (whole - self.span).clamp(min=1), (whole + self.span).clamp(max=self.longest)

    def gradients(
        self, grad_current: Tensor, weight: Tensor, spikes: Tensor, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the weight [N, N] and of `steps` [N].

        Args:
            grad_current: [T, B, N], gradient of the current with what recurrent synapses add.
            weight: recurrent weight [N, N] (post, pre).
            spikes: [T, B, N].
            before: spikes [`longest`, B, N] of the steps before; None = none.
        """
        if before is None:
            before = spikes.new_zeros(self.longest, *spikes.shape[1:])
        history = torch.cat([before.to(weight.dtype), spikes.to(weight.dtype)])

        def arriving(delay: Tensor) -> Tensor:
            return shifted(history, self.longest - delay, spikes).flatten(0, 1)

        rows = grad_current.flatten(0, 1).to(weight.dtype)
        grad_weight = (arriving(self.whole).T @ rows).T
        early, late = self.ends
        later = (rows @ weight).mul_(arriving(late) - arriving(early))
        return grad_weight, later.sum(0) / (late - early).clamp(min=1)

    def gradient_of_before(self, grad_current: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the spikes [`longest`, B, N] before; arguments as in `gradients`."""
        fed = grad_current[: self.longest].to(weight.dtype) @ weight
        of_all = fed.new_zeros(self.longest + len(fed), *fed.shape[1:])
        return of_all.scatter_(0, _index(self.longest - self.whole, fed), fed)[: self.longest]


def shifted(rows: Tensor, by: Tensor, like: Tensor) -> Tensor:
    """Row t + by[n] of rows [R, B, N] for each neuron n and step t of `like` [T, B, N]."""
    return rows.gather(0, _index(by, like))


def _index(by: Tensor, like: Tensor) -> Tensor:
    steps = torch.arange(len(like), device=like.device)
    return (steps[:, None] + by)[:, None].expand(like.shape)


def longest_delay(recurrent_delay: "int | RecurrentDelays") -> int:
    """The longest delay in steps."""
    return recurrent_delay if isinstance(recurrent_delay, int) else recurrent_delay.longest
