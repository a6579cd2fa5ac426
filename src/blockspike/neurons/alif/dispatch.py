"""`alif`: one neuron model, three methods."""

from typing import Literal, get_args

import torch
from torch import Tensor

from blockspike.neurons.alif.blocks import blocks
from blockspike.neurons.alif.blocks_cpu import blocks_cpu
from blockspike.neurons.alif.fused_cpu import fused_cpu
from blockspike.neurons.alif.standard import standard
from blockspike.neurons.alif.trace import ALIFTrace
from blockspike.neurons.surrogate import MultiGaussian, Surrogate

Method = Literal["standard", "blocks", "fused"]
_ON_CPU = {"standard": standard, "blocks": blocks_cpu, "fused": fused_cpu}
_ELSEWHERE = {"standard": standard, "blocks": blocks}


def alif(
    current: Tensor,
    beta: Tensor,
    p: Tensor | None = None,
    b: Tensor | None = None,
    *,
    arp: int = 0,
    recurrent_weight: Tensor | None = None,
    surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
    detach_spikes: bool = True,
    method: Method = "fused",
) -> ALIFTrace:
    """Simulate adaptive leaky integrate-and-fire neurons (Taylor, King & Harper, NeurIPS 2023).

    Equations and symbols: README.md beside this file. The three methods give equal spikes;
    "standard" and "fused" have the gradient of the loop over time, "blocks" the published one.

    Args:
        current: [T, B, N] input current in threshold units, float32 or float64; never modified.
        beta: [N] membrane decay per step, exp(−dt/τ_m).
        p: [N] adaptation decay per step, exp(−dt/τ_a); None (with b) = no adaptation.
        b: [N] threshold raise per spike.
        arp: absolute refractory period in steps, ≥ 0.
        recurrent_weight: [N, N] (post, pre); these synapses have a delay of arp + 1 steps.
        surrogate: the derivative of the spike with respect to V − θ.
        detach_spikes: no gradient through the spike in the reset and in the recurrence.
        method: "standard", "blocks" or "fused".

    Returns:
        ALIFTrace with spikes, membrane and threshold, each [T, B, N].

    Raises:
        ValueError: a bad argument, or a NaN or Inf in any of them.
    """
    _check(current, beta, p, b, arp, recurrent_weight, surrogate, method)
    methods = _ON_CPU if current.device.type == "cpu" else _ELSEWHERE
    return methods[method](
        current,
        beta,
        p,
        b,
        arp=arp,
        recurrent_weight=recurrent_weight,
        surrogate=surrogate,
        detach_spikes=detach_spikes,
    )


def _check(current, beta, p, b, arp, recurrent_weight, surrogate, method) -> None:
    if method not in _ON_CPU:
        raise ValueError(f"method: expected one of {', '.join(_ON_CPU)}, got {method!r}")
    if not isinstance(surrogate, get_args(Surrogate)):
        names = ", ".join(kind.__name__ for kind in get_args(Surrogate))
        raise ValueError(f"surrogate: expected one of {names}, got {surrogate!r}")
    if not isinstance(current, Tensor) or current.ndim != 3 or 0 in current.shape:
        got = list(current.shape) if isinstance(current, Tensor) else type(current).__name__
        raise ValueError(f"current: expected a non-empty tensor [T, B, N], got {got}")
    if current.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"current: expected float32 or float64, got {current.dtype}")
    if isinstance(arp, bool) or not isinstance(arp, int) or arp < 0:
        raise ValueError(f"arp: expected an int ≥ 0 (steps), got {arp!r}")
    if (p is None) != (b is None):
        raise ValueError("p, b: expected both or neither, got only " + ("b" if p is None else "p"))
    n = current.shape[2]
    _check_like("beta", beta, (n,), current)
    for name, value in (("p", p), ("b", b)):
        if value is not None:
            _check_like(name, value, (n,), current)
    if recurrent_weight is not None:
        _check_like("recurrent_weight", recurrent_weight, (n, n), current)
    if current.device.type != "cpu" and method not in _ELSEWHERE:
        raise ValueError(
            f"method: {method!r} runs on cpu, got current on {current.device}; use 'blocks' there"
        )
    _check_parameters_finite(beta=beta, p=p, b=b, recurrent_weight=recurrent_weight)


def _check_like(name: str, value: object, shape: tuple[int, ...], current: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor {list(shape)}, got {type(value).__name__}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(value.shape)}")
    if value.dtype != current.dtype:
        raise ValueError(f"{name}: expected {current.dtype} like current, got {value.dtype}")
    if value.device != current.device:
        raise ValueError(f"{name}: expected device {current.device}, got {value.device}")


def _check_parameters_finite(**parameters: Tensor | None) -> None:
    """The membrane does not tell of these: a NaN in the threshold is just no spike."""
    for name, value in parameters.items():
        if value is not None and not torch.isfinite(value).all():
            bad = value[~torch.isfinite(value)]
            raise ValueError(
                f"{name}: expected finite values, got {bad[0].item()} ({len(bad)} such values)"
            )
