"""`alif`: one neuron model, three methods."""

from typing import Literal, get_args

import torch
from torch import Tensor

from blockspike.neurons.alif.blocks import blocks
from blockspike.neurons.alif.blocks_cpu import blocks_cpu
from blockspike.neurons.alif.fused_cpu import fused_cpu
from blockspike.neurons.alif.standard import standard
from blockspike.neurons.alif.trace import ALIFTrace, NotFiniteError
from blockspike.neurons.gpu import require_triton
from blockspike.neurons.surrogate import MultiGaussian, Surrogate

Method = Literal["standard", "blocks", "fused"]
_ON_CPU = {"standard": standard, "blocks": blocks_cpu, "fused": fused_cpu}


def _fused_elsewhere(*args, **options) -> ALIFTrace:
    from blockspike.neurons.alif.fused_gpu import fused_gpu  # only here is Triton needed

    return fused_gpu(*args, **options)


_ELSEWHERE = {"standard": standard, "blocks": blocks, "fused": _fused_elsewhere}


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
            "fused" on a GPU also takes bfloat16 beside float32 parameters, and then gives spikes
            (and the current's gradient) in bfloat16; the state is float32 all the same.
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
        ValueError: a bad argument; NotFiniteError, which is one, a NaN or Inf in any of them.
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
    _check_dtype(current, method)
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
    if current.device.type != "cpu" and method == "fused":
        require_triton("method: 'fused'", "current", current.device)
    _check_parameters_finite(beta=beta, p=p, b=b, recurrent_weight=recurrent_weight)


def _check_dtype(current: Tensor, method: str) -> None:
    half = current.dtype == torch.bfloat16 and method == "fused" and current.device.type != "cpu"
    if not half and current.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "current: expected float32 or float64, or bfloat16 for 'fused' on a GPU; "
            f"got {current.dtype} for {method!r} on {current.device}"
        )


def _check_like(name: str, value: object, shape: tuple[int, ...], current: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor {list(shape)}, got {type(value).__name__}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(value.shape)}")
    dtype = torch.float32 if current.dtype == torch.bfloat16 else current.dtype
    if value.dtype != dtype:
        raise ValueError(
            f"{name}: expected {dtype} with current of {current.dtype}, got {value.dtype}"
        )
    if value.device != current.device:
        raise ValueError(f"{name}: expected device {current.device}, got {value.device}")


def _check_parameters_finite(**parameters: Tensor | None) -> None:
    """The membrane does not tell of these: a NaN in the threshold is just no spike."""
    given = {name: value for name, value in parameters.items() if value is not None}
    if torch.stack([torch.isfinite(value).all() for value in given.values()]).all():
        return  # asked once: a GPU has to be waited for
    for name, value in given.items():
        bad = value[~torch.isfinite(value)]
        if len(bad):
            raise NotFiniteError(
                f"{name}: expected finite values, got {bad[0].item()} ({len(bad)} such values)"
            )
