"""What every benchmark shares: medians over rounds, claims, and the report of both."""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

_STEADY = 1.3  # third by first quartile; above, other work on the machine was measured too


@dataclass(frozen=True)
class Claim:
    """A ratio that the documentation claims.

    Attributes:
        claim: what was measured and the methods.
        measured, needed: the ratio and the bound that it has to keep.
        met: None where the rounds were too unsteady to tell. Two threads of PyTorch on a busy
            machine wait for each other and can be 50 times slower, which flatters the others.
    """

    claim: str
    measured: float
    needed: str
    met: bool | None


def quartiles(costs: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile of at least two values, one per round."""
    low, median, high = statistics.quantiles(costs, n=4, method="inclusive")
    return low, median, high


def steady(costs: Sequence[float]) -> bool:
    """Whether the rounds agree well enough to judge a claim by them."""
    low, _, high = quartiles(costs)
    return high <= _STEADY * low


def median_ratio(costs: Sequence[float], by: Sequence[float]) -> float:
    """Median over the rounds of `costs` by `by`, round by round; equal lengths."""
    return statistics.median(a / b for a, b in zip(costs, by, strict=True))


def judge(
    claim: str, measured: float, sense: str, bound: float, costs: Sequence[Sequence[float]]
) -> Claim:
    """The claim that `measured` is at least ("≥") or at most ("≤") `bound`.

    `costs` are what was measured for it, per method; one that is not steady leaves it open.
    """
    met = measured >= bound if sense == "≥" else measured <= bound
    return Claim(claim, measured, f"{sense} {bound:g}", met if all(map(steady, costs)) else None)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Add the options `--rounds` and `--json` and parse; fewer than two rounds is an error."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write one claim a line to this file")
    options = parser.parse_args(argv)
    if options.rounds < 2:
        parser.error(f"--rounds: expected at least 2, got {options.rounds}")
    return options


def report(
    console: Console, found: Sequence[Claim], options: argparse.Namespace, load: float
) -> None:
    """Print the claims and the machine, and write the claims to `options.json`.

    Args:
        options: from `parse`.
        load: load average before the measurement.
    """
    if found:
        _print_claims(console, found)
    threads = torch.get_num_threads()
    console.print(f"{options.rounds} rounds, {threads} threads, torch {torch.__version__}")
    console.print(f"load average {load:.2f} before, {os.getloadavg()[0]:.2f} after")
    if options.json:
        lines = [json.dumps(asdict(c) | {"threads": threads, "load": load}) for c in found]
        options.json.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _print_claims(console: Console, found: Sequence[Claim]) -> None:
    table = Table("claim", "measured", "needed", "met", title="claims, median over the rounds")
    for claim in found:
        met = {True: "yes", False: "[bold]NO[/bold]", None: "unsteady"}[claim.met]
        table.add_row(claim.claim, f"{claim.measured:.3g}", claim.needed, met)
    console.print(table)
