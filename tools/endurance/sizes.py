"""Long, wide and large arrays: results against the readable methods, and what memory they take.

`python tools/endurance/sizes.py` needs 14 GiB of free memory and some minutes; exit code 1 if a
result is wrong.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from blockspike.networks.synapses import synaptic_current
from blockspike.neurons import alif
from blockspike.neurons.cpu.events import events_of
from blockspike.neurons.events import EventBatch

ARP = 20
TWINS = {"fused": "standard", "blocks": "parallel blocks"}
GRID = 1 / 64  # currents and weights are multiples: their sums are exact in any order
GIB = 2**30


def made(shape: tuple[int, int, int], dtype=torch.float64, recurrent=False) -> dict[str, Any]:
    """Arguments of `alif` of seed 0, at which some percent of the steps have a spike."""
    draw = torch.Generator().manual_seed(0)
    n = shape[2]
    current = torch.round((0.15 + 0.6 * torch.randn(shape, generator=draw)) / GRID) * GRID
    inputs: dict[str, Any] = {"current": current.to(dtype)}
    for name, low, high in (("beta", 0.5, 0.97), ("p", 0.5, 0.99), ("b", 0.05, 0.6)):
        inputs[name] = (low + (high - low) * torch.rand(n, generator=draw)).to(dtype)
    if recurrent:
        weight = torch.randn(n, n, generator=draw, dtype=dtype)
        inputs["recurrent_weight"] = weight.mul_(0.5 / n**0.5 / GRID).round_().mul_(GRID)
    return inputs


def spikes_and_gradients(inputs: dict[str, Any], method: str, arp: int = ARP) -> list[Tensor]:
    """Of one method; "parallel blocks" is the readable Blocks."""
    leaves: dict[str, Any] = {k: x.detach().requires_grad_() for k, x in inputs.items()}
    is_parallel = method == "parallel blocks"  # the form that has the membrane
    name: Any = "blocks" if is_parallel else method
    spikes = alif(**leaves, arp=arp, method=name, membrane=is_parallel).spikes
    draw = torch.Generator().manual_seed(1)
    spikes.backward(torch.randn(spikes.shape, generator=draw).to(spikes.dtype))
    return [spikes.detach(), *(x.grad for x in leaves.values() if x.grad is not None)]


def largest_error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Of the gradients, to the norm of each; infinite if a spike differs."""
    if not torch.equal(ours[0], theirs[0]):
        return float("inf")
    pairs = zip(ours[1:], theirs[1:], strict=True)
    return max(float((a.sub_(b)).norm() / b.norm()) for a, b in pairs)


def saved_bytes(inputs: dict[str, Any], n_steps: int, method: str) -> int:
    """Kept for backward, beside the arguments, by the first steps of a run."""
    leaves: dict[str, Any] = {k: x.detach().requires_grad_() for k, x in inputs.items()}
    leaves["current"] = inputs["current"][:n_steps].clone().requires_grad_()
    kept = {x.untyped_storage().data_ptr(): 0 for x in leaves.values()}

    def keep(x: Tensor) -> Tensor:
        kept.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes())
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        alif(**leaves, arp=ARP, method=method)  # pyright: ignore
    return sum(kept.values())


def require_free(gib: float) -> None:
    """Raise MemoryError unless so much is available."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024 / GIB
            if available < gib:
                raise MemoryError(f"expected {gib} GiB of available memory, got {available:.1f}")


def one_neuron_step_by_step(inputs: dict[str, Any], arp: int) -> np.ndarray:
    """Spikes [T] of one ALIF neuron, computed with plain numbers (docs/paper.md, The neuron)."""
    beta, p, b = (float(inputs[name]) for name in ("beta", "p", "b"))
    v, a, silent, spikes = 0.0, 0.0, 0, []
    for current in inputs["current"].flatten().tolist():
        v = beta * v + (current if silent == 0 else 0.0)
        fires = v > 1 + b * a
        spikes.append(fires)
        silent = arp if fires else max(silent - 1, 0)
        v, a = (0.0, p * a + 1) if fires else (v, p * a)
    return np.array(spikes)


def long_runs(n_steps: int, n_compared: int) -> list[str]:
    """One neuron: gradients up to n_compared steps, then spikes, causality and memory."""
    wrong = []
    inputs = made((n_steps, 1, 1))
    head = {**inputs, "current": inputs["current"][:n_compared]}
    for method, twin in TWINS.items():
        error = largest_error(spikes_and_gradients(head, method), spikes_and_gradients(head, twin))
        ok = error < 1e-9
        wrong += report(f"T = {n_compared:,}, {method} against {twin}", f"error {error:.0e}", ok)
    expected = one_neuron_step_by_step(inputs, ARP)
    for method in TWINS:
        whole = spikes_and_gradients(inputs, method)
        equal = np.array_equal(whole[0].flatten().numpy() > 0, expected)
        ok = equal and all(bool(torch.isfinite(x).all()) for x in whole)
        what = f"{expected.sum():,} spikes"
        wrong += report(f"T = {n_steps:,}, {method} against plain numbers", what, ok)
        del whole
        bytes_ = [saved_bytes(inputs, n, method) for n in (n_steps // 2, n_steps)]
        what = f"{bytes_[1] / n_steps:.1f} bytes a step, × {bytes_[1] / bytes_[0]:.2f}"
        ok = bytes_[1] <= 2.01 * bytes_[0]
        wrong += report(f"kept for backward by {method}, T = {n_steps:,} to half", what, ok)
    return wrong


def wide_layers(n_neurons: int, recurrent: bool) -> list[str]:
    """N neurons, forward and backward, float32."""
    wrong = []
    inputs = made((24, 2, n_neurons), torch.float32, recurrent)
    for method, twin in TWINS.items():
        ours = spikes_and_gradients(inputs, method, arp=3)
        error = largest_error(ours, spikes_and_gradients(inputs, twin, arp=3))
        name = f"N = {n_neurons:,}{', recurrent' if recurrent else ''}, {method} against {twin}"
        wrong += report(name, f"{int(ours[0].sum()):,} spikes, error {error:.0e}", error < 1e-4)
    return wrong


def large_arrays(n_steps: int = 1025, n_neurons: int = 2**21, n_driven: int = 1024) -> list[str]:
    """Over 2³¹ elements, driven in the last columns only: the others must stay silent."""
    small = made((n_steps, 1, n_driven), torch.float32)
    expected = alif(**small, arp=ARP)
    current = np.zeros((n_steps, 1, n_neurons), np.float32)  # takes no memory where only read
    current[..., -n_driven:] = small["current"].numpy()
    first = n_neurons - n_driven
    wide: dict[str, Any] = {name: torch.full((n_neurons,), 0.5) for name in ("beta", "p", "b")}
    for name, x in wide.items():
        x[-n_driven:] = small[name]
    with torch.no_grad():
        trace = alif(torch.from_numpy(current), **wide, arp=ARP)
    row_ptr, unit = trace.events.row_ptr_and_unit
    few_ptr, few = expected.events.row_ptr_and_unit
    ok = np.array_equal(row_ptr, few_ptr) and np.array_equal(unit, few + np.int32(first))
    ok &= torch.equal(trace.spikes[..., -n_driven:], expected.spikes)
    ok &= not bool(trace.spikes[..., :first].any())
    name, what = f"T·B·N = {current.size:,}, fused", f"{len(unit):,} spikes"
    wrong = report(f"{name}, spikes and their events", what, ok)
    del trace

    events = EventBatch(torch.from_numpy(row_ptr), torch.from_numpy(unit), (n_steps, 1, n_neurons))
    few_events = EventBatch(
        torch.from_numpy(few_ptr), torch.from_numpy(few), (n_steps, 1, n_driven)
    )
    dense = events.dense(torch.uint8)
    again = events_of(dense.flatten(0, 1).numpy())
    ok = all(np.array_equal(a, b) for a, b in zip(again, (row_ptr, unit), strict=True))
    wrong += report(f"T·B·K = {dense.numel():,}, events, dense and back", what, ok)
    del dense
    weight = torch.zeros(1, 4, n_neurons)
    weight[..., -n_driven:] = torch.randn(1, 4, n_driven)
    results = []
    for x, w in ((events, weight), (few_events, weight[..., -n_driven:].clone())):
        w.requires_grad_()
        out = synaptic_current(x, w, torch.zeros(4), mode="events")
        out.square().sum().backward()
        assert w.grad is not None
        results.append((out.detach(), w.grad[..., -n_driven:].clone()))
    ok = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    return wrong + report(f"T·B·K = {current.size:,}, event-driven synapses", what, ok)


def report(name: str, what: str, ok: bool) -> list[str]:
    """Print a line of the table; the name if it is wrong."""
    print(f"{name:62} {what:36} {'ok' if ok else 'WRONG'}", flush=True)
    return [] if ok else [name]


def main() -> None:
    """Print the table; exit code 1 if something is wrong."""
    wrong = long_runs(10**6, 10**5)
    wrong += wide_layers(20_000, recurrent=False)
    require_free(14)
    wrong += large_arrays()
    require_free(14)
    wrong += wide_layers(20_000, recurrent=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
