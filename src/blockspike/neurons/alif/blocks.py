"""ALIF by blocks of arp + 1 steps, as in Taylor, King & Harper (NeurIPS 2023), section 3.

A neuron spikes at most once in a block, and recurrence is one whole block late, so T steps take
T / (arp + 1) sequential stages. The gradient is the published one, not the standard gradient.
Inside, arrays are [N, n, B] (n = steps of the block): one small matrix product per neuron.
"""

import torch
from torch import Tensor

from blockspike.neurons.alif.trace import ALIFTrace, check_finite, threshold_of
from blockspike.neurons.surrogate import Surrogate, spike


class _FirstSpike(torch.autograd.Function):
    """S[t] = 1 at the first crossing only; its gradient is straight through z.

    z[t] = Σ_{k≤t} (t−k+1) S̃[k] is 0 before the first crossing, exactly 1 at it, ≥ 2 after.
    """

    @staticmethod
    def forward(ctx, crossings: Tensor, ramp: Tensor) -> tuple[Tensor, Tensor]:
        z = ramp @ crossings  # [N, n, B]
        since = (z > 0).to(z.dtype)  # 1 from the spike on
        ctx.save_for_backward(ramp)
        ctx.mark_non_differentiable(since)
        ctx.set_materialize_grads(False)
        return (z == 1).to(z.dtype), since

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        (ramp,) = ctx.saved_tensors
        return None if grads[0] is None else ramp.T @ grads[0], None  # Σ_{t≥k} (t−k+1) gS[t]


def _neurons_first(x: Tensor) -> Tensor:
    """[T, B, N] → [N, T, B] in memory; as a transposed matrix, which PyTorch copies by tiles."""
    return x.flatten(0, 1).t().contiguous().view(x.shape[2], *x.shape[:2])


def _time_first(x: Tensor) -> Tensor:
    """[N, T, B] → [T, B, N] in memory."""
    return x.flatten(1).t().contiguous().view(*x.shape[1:], x.shape[0])


class _NeuronsFirst(torch.autograd.Function):
    """`_neurons_first` whose gradient is laid out anew as well: strided gradients are slow."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _neurons_first(x)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return _time_first(grads[0])


class _TimeFirst(torch.autograd.Function):
    """The way back."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _time_first(x)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return _neurons_first(grads[0])


def _decay_matrix(beta: Tensor, n: int) -> Tensor:
    """β^(t−k) for k ≤ t, else 0: [N, n, n]."""
    offset = torch.arange(n, device=beta.device)
    lag = offset[:, None] - offset
    return (beta[:, None, None] ** lag.clamp(min=0)).tril()


def _adaptation_after_spike(before: Tensor, spikes: Tensor, rate: Tensor, fade: Tensor) -> Tensor:
    """(a just before the spike + 1)·p^(steps left in the block): a at the block's end [N, 1, B].

    Of the two places where the spikes [N, n, B] stand, only the first carries their gradient.
    """
    at_spike = (fade * rate).mT @ spikes * before + 1
    return at_spike * (fade.flip(1).mT @ spikes.detach())


def blocks(
    current: Tensor,
    beta: Tensor,
    p: Tensor | None,
    b: Tensor | None,
    *,
    arp: int,
    recurrent_weight: Tensor | None,
    surrogate: Surrogate,
    detach_spikes: bool,
) -> ALIFTrace:
    """SPEC section 2, step by step; arguments as `alif`, already checked."""
    n_steps, batch_size, n_neurons = current.shape
    n = min(arp + 1, n_steps)
    drive: Tensor = _NeuronsFirst.apply(current)  # [N, T, B]  # pyright: ignore
    offset = torch.arange(n, device=current.device)[:, None]  # [n, 1]
    decay = _decay_matrix(beta, n)  # [N, n, n]
    carry = beta[:, None, None] ** (offset + 1)  # β^(t+1) of the carried-in V0  [N, n, 1]
    adapting = p is not None and b is not None
    rate = (torch.zeros_like(beta) if p is None else p)[:, None, None]
    raise_ = (torch.zeros_like(beta) if b is None else b)[:, None, None]
    ramp = (offset - offset.T + 1).tril().to(beta.dtype)  # t − k + 1 for k ≤ t  [n, n]
    fade = rate**offset  # p^t  [N, n, 1]
    raised = raise_ * fade  # of θ by one unit of a, t steps into the block

    start = drive.new_zeros(n_neurons, 1, batch_size)  # V0
    adaptation = torch.zeros_like(start)  # a at the last step of the block before
    open_ = drive.new_ones(n_neurons, n, batch_size)  # 0 where the current is masked
    spikes: list[Tensor] = []
    free_membranes: list[Tensor] = []

    for block in drive.split(n, dim=1):
        m = block.shape[1]  # n, or less in the last block
        if spikes and recurrent_weight is not None:
            before = spikes[-1].detach() if detach_spikes else spikes[-1]
            block = block + (recurrent_weight @ before.flatten(1)).view_as(before)[:, :m]
        # 1. the membrane as if nothing reset
        free = torch.baddbmm(carry[:, :m] @ start, decay[:, :m, :m], block * open_[:, :m])
        # 2. crossings of the threshold as if nothing spiked in this block
        margin = (
            torch.baddbmm(free - 1, raised[:, :m], adaptation, alpha=-1) if adapting else free - 1
        )
        crossings = spike(margin, surrogate)
        # 3., 4. only the first crossing is a spike
        s, since = _FirstSpike.apply(crossings, ramp[:m, :m])  # pyright: ignore
        fixed = s.detach()
        spiked = since[:, -1:]  # [N, 1, B]
        spikes.append(s)
        free_membranes.append(free.detach())
        # into the next block
        start = free[:, -1:] * (1 - spiked)
        if m == n:
            open_ = since + (1 - spiked)  # arp steps of silence end where the spike was
            if adapting:
                counted = fixed if detach_spikes else s
                after_spike = _adaptation_after_spike(adaptation, counted, rate, fade)
                adaptation = torch.where(spiked > 0, after_spike, rate**n * adaptation)

    check_finite(start.squeeze(1).T, current)
    return _trace(spikes, free_membranes, p, b)


def _trace(
    spikes: list[Tensor], free_membranes: list[Tensor], p: Tensor | None, b: Tensor | None
) -> ALIFTrace:
    def membranes() -> list[Tensor]:  # V is 0 after the spike of a block
        fixed = [s.detach() for s in spikes]
        return [v * (1 - s.cumsum(1) + s) for v, s in zip(free_membranes, fixed, strict=True)]

    whole: Tensor = _TimeFirst.apply(torch.cat(spikes, dim=1))  # pyright: ignore
    return ALIFTrace(
        whole,
        lambda: (
            _time_first(torch.cat(membranes(), dim=1)),
            threshold_of(whole.detach(), p, b),
        ),
    )
