"""Timing in turns, statistics over rounds, and what a time depends on."""

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
from torch import Tensor

Row = dict[str, Any]
"""A row of the table: column → value."""

_QUICK_S = 0.1  # a run below this is repeated within its turn
_STEADY = 1.3  # largest third / first quartile; above it, other work disturbed the measurement


@dataclass(frozen=True)
class Turn:
    """Seconds of one forward and one backward pass, and of the optimiser's update, if any."""

    forward: float
    backward: float = 0.0
    update: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return self.forward + self.backward + self.update


class ContenderError(RuntimeError):
    """A contender failed in another process; the text names the error there."""


Turns = dict[str, list[Turn] | str]
"""Contender → its turns, or the reason why it has none."""


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
    del total  # frees the graph, which takes a while after a loop over time
    synchronise(device)
    return Turn(forwarded - started, time.perf_counter() - forwarded)


def repeat(turn: Callable[[], Turn]) -> Turn:
    """Run a contender, repeatedly if it is quick, and return the median of the later runs.

    In the first run the caches hold the previous contender's data and threads are asleep, unlike
    in a program that simulates in a loop.
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
) -> Turns:
    """Warm up every contender, then time all of them in turns.

    Args:
        contenders: name → function that runs once and returns its times.
        rounds: turns of each contender after the warm-up.
        longest_turn_s: a contender that takes longer, even when run again, is left out.
        warm_ups: uncounted runs, which compile or capture a graph.

    Returns:
        Contender → its turns; of one that failed or was too slow, the reason.
    """
    found: Turns = {}
    for name, run in contenders.items():
        try:
            turn = [run() for _ in range(warm_ups)][-1]
            if turn.total > longest_turn_s:
                turn = run()
            slow = turn.total > longest_turn_s
            found[name] = f"took {turn.total:.0f} s, longer than longest_turn_s" if slow else []
        except Exception as error:  # other libraries may raise anything
            found[name] = reason(error)
        gc.collect()
    order = list(contenders)
    shuffle = Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)  # nobody always follows the same other contender
        for name in order:
            turns = found[name]
            if isinstance(turns, list):
                try:
                    turns.append(contenders[name]())
                except Exception as error:
                    found[name] = reason(error)
    return found


def all_turns(found: Turns) -> dict[str, list[Turn]]:
    """The turns of every contender; raises RuntimeError if one has none."""
    failed = [f"{name}: {why}" for name, why in found.items() if isinstance(why, str)]
    if failed:
        raise RuntimeError("; ".join(failed))
    return {name: turns for name, turns in found.items() if isinstance(turns, list)}


def reason(error: Exception) -> str:
    """The error on one line of at most 300 characters."""
    name = "" if isinstance(error, ContenderError) else f"{type(error).__name__}: "
    return f"{name}{' '.join(str(error).split())}"[:300]


def cost(turns: list[Turn] | str, by: list[Turn] | str | None = None) -> Row:
    """Columns of a contender's times, or of the reason why it was left out.

    They are the quartiles of each part in ms, and the median over the rounds of its ratio to the
    same part of `by`, which is `fused`.
    """
    if isinstance(turns, str):
        return {"left_out": turns}
    row: Row = {"rounds": len(turns), "steady": steady([t.total for t in turns])}
    for part in ("forward", "backward", "total", "update"):
        seconds = [getattr(t, part) for t in turns]
        if part == "update" and not any(seconds):
            continue
        for label, value in zip(("q25", "median", "q75"), quartiles(seconds), strict=True):
            row[f"{part}_ms_{label}"] = round(1000 * value, 4)
        if isinstance(by, list) and all(getattr(t, part) for t in by):
            row[f"{part}_by_fused"] = round(
                median_ratio(seconds, [getattr(t, part) for t in by]), 4
            )
    return row


def quartiles(values: Sequence[float]) -> list[float]:
    """First quartile, median and third quartile of at least two values."""
    return statistics.quantiles(values, n=4, method="inclusive")


def steady(seconds: Sequence[float]) -> bool:
    """Whether the rounds agree well enough to judge by them."""
    low, _, high = quartiles(seconds)
    return high <= _STEADY * low


def median_ratio(seconds: Sequence[float], by: Sequence[float]) -> float:
    """Median over the rounds of `seconds` divided by `by`, which have equal lengths."""
    return statistics.median(a / b for a, b in zip(seconds, by, strict=True))


def machine(device: torch.device) -> Row:
    """What times depend on: processor, threads, memory and versions."""
    cpus = [x.split(":", 1)[1].strip() for x in _lines("/proc/cpuinfo") if "model name" in x]
    n_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpus[0] if cpus else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(n_bytes / 2**30, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numba": version("numba"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def peak_bytes(step: Callable[[], object]) -> int:
    """Peak memory of a function, beyond what the process held before it; Linux only.

    Run it in a new process: memory that was freed earlier would be used again without being
    counted.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # the C library returns freed memory to the system
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what the process holds now
    held = _resident_bytes("VmRSS")
    step()
    return _resident_bytes("VmHWM") - held


def _resident_bytes(field: str) -> int:
    """Resident memory VmRSS or its peak VmHWM; `ru_maxrss` would include the parent's peak."""
    (line,) = (x for x in _lines("/proc/self/status") if x.startswith(field))
    return 1024 * int(line.split()[1])
