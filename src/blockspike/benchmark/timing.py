"""Shared parts of the benchmarks: timing in turns, statistics over rounds, and claims."""

import ctypes
import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

_QUICK_S = 0.1  # of a run that is repeated within a turn
_STEADY = 1.3  # largest third / first quartile; above it, other work disturbed the measurement


@dataclass(frozen=True)
class Claim:
    """A documented ratio and its measurement.

    Attributes:
        claim: the measurement and the methods.
        measured, needed: the ratio and its bound.
        met: whether the bound holds; None if the rounds were too unsteady to tell. On a busy
            machine, PyTorch's threads wait for each other and can be 50 times slower, which
            flatters the others.
    """

    claim: str
    measured: float
    needed: str
    met: bool | None


@dataclass(frozen=True)
class Turn:
    """Seconds of one forward and one backward pass, and of the update after them, if any."""

    forward: float
    backward: float
    update: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return self.forward + self.backward + self.update


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_turn(forward: Callable[[], Tensor], device: torch.device) -> Turn:
    """Time `forward`, which returns a differentiable tensor, and the backward pass of its sum."""
    synchronise(device)
    started = time.perf_counter()
    total = forward().sum()
    synchronise(device)
    forwarded = time.perf_counter()
    total.backward()
    del total  # and with it the graph, which takes a while for a loop over time
    synchronise(device)
    return Turn(forwarded - started, time.perf_counter() - forwarded)


def repeat(turn: Callable[[], Turn]) -> Turn:
    """Run a contender, again and again if it is quick, and return the median one of the later runs.

    The first run finds the caches as the contender before left them, and threads asleep; a program
    that simulates in a loop does not.
    """
    first = turn()
    if first.total > _QUICK_S:
        return first
    turns = [turn() for _ in range(max(2, min(50, int(2 * _QUICK_S / first.total))))]
    return sorted(turns, key=lambda turn: turn.total)[len(turns) // 2]


def take_turns(
    contenders: Mapping[str, Callable[[], Turn]],
    rounds: int,
    longest_turn_s: float = math.inf,
    warm_ups: int = 1,
) -> dict[str, list[Turn] | str]:
    """Warm up every contender, then run all of them in turns for some rounds.

    Args:
        contenders: name → function that runs once and returns its times.
        rounds: number of rounds after the warm-up.
        longest_turn_s: a contender that takes longer, even when repeated, is left out.
        warm_ups: runs that compile or capture a graph, and are not counted.

    Returns:
        Contender → its turns, or the reason why there are none: an error, or too slow.
    """
    found: dict[str, list[Turn] | str] = {}
    for name, run in contenders.items():
        try:
            turn = [run() for _ in range(warm_ups)][-1]
            if turn.total > longest_turn_s:
                turn = run()
        except Exception as error:  # other libraries may raise anything
            found[name] = reason(error)
            continue
        finally:
            gc.collect()
        slow = turn.total > longest_turn_s
        found[name] = f"took {turn.total:.0f} s, longer than longest_turn_s" if slow else []
    order = list(contenders)
    shuffle = Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)  # so that none always finds the caches as the same other one left them
        for name in order:
            turns = found[name]
            if isinstance(turns, list):
                try:
                    turns.append(contenders[name]())
                except Exception as error:
                    found[name] = reason(error)
    return found


def all_turns(found: Mapping[str, list[Turn] | str]) -> dict[str, list[Turn]]:
    """The turns that `take_turns` returned; raises RuntimeError if a contender failed."""
    failed = [f"{name}: {why}" for name, why in found.items() if isinstance(why, str)]
    if failed:
        raise RuntimeError("; ".join(failed))
    return {name: turns for name, turns in found.items() if isinstance(turns, list)}


def reason(error: Exception) -> str:
    """The error on one line of at most 300 characters, for a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def summary(turns: Sequence[Turn], by: Sequence[Turn] | None) -> dict[str, Any]:
    """Quartiles of forward, backward and total in ms, and their median ratios to `by`."""
    parts = {
        "forward": [t.forward for t in turns],
        "backward": [t.backward for t in turns],
        "total": [t.total for t in turns],
    }
    if any(t.update for t in turns):
        parts["update"] = [t.update for t in turns]
    row: dict[str, Any] = {"rounds": len(turns), "steady": steady(parts["total"])}
    for part, seconds in parts.items():
        for label, value in zip(("q25", "median", "q75"), quartiles(seconds), strict=True):
            row[f"{part}_ms_{label}"] = round(1000 * value, 4)
        if by is not None and all(getattr(t, part) for t in by):
            ratio = median_ratio(seconds, [getattr(t, part) for t in by])
            row[f"{part}_by_fused"] = round(ratio, 4)
    return row


def machine(device: torch.device) -> dict[str, Any]:
    """Describe what timings depend on: processor, threads, memory and versions."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in _lines(Path("/proc/cpuinfo"))
            if line.startswith("model name")
        ),
        platform.processor() or platform.machine(),
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numba": version("numba"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def peak_bytes(step: Callable[[], object]) -> int:
    """Peak memory of a function, beyond what the process held before it; Linux only.

    Run it in a new process, since memory freed earlier would be reused without being counted.
    Freed memory that the C library still holds is first returned to the system.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the memory held now
    held = _resident_bytes("VmRSS")
    step()
    return _resident_bytes("VmHWM") - held


def _resident_bytes(field: str) -> int:
    """Resident memory VmRSS or its peak VmHWM; `ru_maxrss` includes the parent's peak."""
    for line in _lines(Path("/proc/self/status")):
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status: expected a line {field}, got none")


def quartiles(costs: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile of at least two values."""
    low, median, high = statistics.quantiles(costs, n=4, method="inclusive")
    return low, median, high


def steady(costs: Sequence[float]) -> bool:
    """Return whether the rounds agree well enough to judge a claim by them."""
    low, _, high = quartiles(costs)
    return high <= _STEADY * low


def median_ratio(costs: Sequence[float], by: Sequence[float]) -> float:
    """Median over the rounds of `costs` divided by `by`, which have equal lengths."""
    return statistics.median(a / b for a, b in zip(costs, by, strict=True))


def judge(claim: str, measured: float, least: float, costs: Sequence[Sequence[float]]) -> Claim:
    """Judge the claim that `measured` is at least `least`.

    `costs` are the measurements of each method; if one is unsteady, the claim is left open.
    """
    is_met = measured >= least if all(map(steady, costs)) else None
    return Claim(claim, measured, f"≥ {least:g}", is_met)


def print_claims(console: Console, found: Sequence[Claim]) -> None:
    """Print each claim, its measurement and whether it is met."""
    table = Table("claim", "measured", "needed", "met", title="claims, median over the rounds")
    for claim in found:
        met = {True: "yes", False: "[bold]NO[/bold]", None: "unsteady"}[claim.met]
        table.add_row(claim.claim, f"{claim.measured:.3g}", claim.needed, met)
    console.print(table)
