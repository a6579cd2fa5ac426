"""`blockspike benchmark`: measure speeds side by side and collect them in one table."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from blockspike.app.compose import compose
from blockspike.app.trainer import use_threads
from blockspike.benchmark.guard import FLOORS, check_floors
from blockspike.benchmark.layers import CONTENDERS
from blockspike.benchmark.studies import Options, Piece, pieces
from blockspike.benchmark.table import Row, RowFile
from blockspike.benchmark.timing import machine, print_claims
from blockspike.data.progress import progress
from blockspike.files import whole_file
from blockspike.runs.identity import plain
from blockspike.runs.run import provenance

_DRAWN = {"speed": {"length", "layers", "libraries"}, "tradeoff": {"tradeoff"}}  # figure → studies

_NOT_OPTIONS = ("study", "check", "threads", "output_dir")
_LISTS = ("study", "n_steps", "arp_steps", "batch_size", "n_units", "n_layers", "contenders")


def benchmark_of(overrides: Sequence[str], check: bool = False) -> None:
    """Run `benchmark` with values of conf/benchmark.yaml: study=length,layers is a list."""
    given = []
    for override in overrides:
        name, _, value = override.partition("=")
        if name in _LISTS and value[:1] not in ("", "[") and value != "null":
            items = (x if x.isdigit() else f"'{x}'" for x in value.split(","))
            override = f"{name}=[{','.join(items)}]"
        given.append(override)
    benchmark(compose("benchmark", [*given, f"check={check}"]))


def benchmark(cfg: DictConfig) -> None:
    """Measure what is missing, write `tables/speed.csv` and print a summary.

    Raises:
        ValueError: an unknown study or contender, or an unavailable device.
        SystemExit: with `check`, a ratio is below its floor.
    """
    use_threads(cfg.threads)
    console = Console()
    if cfg.check:
        _check(console, max(cfg.rounds, 2))
        return
    chosen: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in plain(cfg).items()
        if key not in _NOT_OPTIONS
    }
    options = Options(**chosen)
    file = RowFile(Path(cfg.output_dir) / "benchmark" / "rows.jsonl")
    source = provenance()
    made = {
        "rounds_asked": options.rounds,
        "longest_turn_s": options.longest_turn_s,
        "memory": options.memory,
        "blockspike": version("blockspike"),
        "git_sha": source["git_sha"],
        "git_dirty": source["git_dirty"],
    }
    # All that a row depends on besides its contender; a change in any of it makes a new row.
    asked = [
        (piece, {**piece.key, **machine(piece.device), **made})
        for study in cfg.study
        for piece in pieces(study, options)
    ]
    with progress("Benchmark", len(asked)) as advance:
        for piece, about in asked:
            if not _is_known(piece, file.find(about)):
                load = round(os.getloadavg()[0], 2)
                rows = [{**row, **about, "load": load} for row in piece.measure()]
                file.add(rows)
                console.print(_one_line(piece, rows), highlight=False)
            advance(1)
    rows = [row for _, about in asked for row in _last_of_each(file.find(about))]
    _print_summary(console, rows)
    path = Path(cfg.output_dir) / "tables" / "speed.csv"
    with whole_file(path) as file_path:
        pd.DataFrame(rows).to_csv(file_path, index=False)
    drawn = [name for name, of in _DRAWN.items() if of & {row["study"] for row in rows}]
    commands = [f"`blockspike plot paper {name} --table {path}`" for name in drawn]
    console.print(f"{path}: drawn by {' and '.join(commands)}" if drawn else f"{path}")


def _is_known(piece: Piece, rows: Sequence[Row]) -> bool:
    """Return whether each contender has a row measured with its installed version."""
    versions = {row["contender"]: row.get("version") for row in _last_of_each(rows)}
    return bool(rows) and all(
        name in versions and versions[name] == _version(name) for name in piece.contenders
    )


def _version(name: str) -> str | None:
    """Installed version of a contender's library; None for our own methods."""
    return CONTENDERS[name].version if name in CONTENDERS else None


def _last_of_each(rows: Sequence[Row]) -> list[Row]:
    columns = ("contender", "dt_ms", "case")
    return list({tuple(map(row.get, columns)): row for row in rows}.values())


def _check(console: Console, rounds: int) -> None:
    claims = check_floors(rounds)
    print_claims(console, claims)
    floors = FLOORS.values()
    low = [c.claim for c, floor in zip(claims, floors, strict=True) if c.measured < floor]
    if low:
        print(f"blockspike benchmark: below the floor: {', '.join(low)}", file=sys.stderr)
        sys.exit(1)


def _one_line(piece: Piece, rows: Sequence[Row]) -> str:
    """Describe a piece on one line: its size, the time of fused and the others' ratios to it."""
    size = ", ".join(f"{k} {v}" for k, v in piece.key.items() if k not in ("study", "inputs"))
    shown = [f"{piece.key['study']}: {size}"]
    for row in rows:
        if row["contender"] == "fused" and "total_ms_median" in row and "dt_ms" not in row:
            shown.append(f"fused {row['total_ms_median']:.1f} ms")
        elif "total_by_fused" in row and "dt_ms" not in row:
            shown.append(f"{row['contender']} × {row['total_by_fused']:.3g}")
    return "; ".join(shown)


def _print_summary(console: Console, rows: Sequence[Row]) -> None:
    """Print the ratios to fused by study and contender: minimum, median and maximum."""
    table = pd.DataFrame(rows)
    if "total_by_fused" in table:
        shown = Table(title="times as long as fused, forward + backward")
        for column in ("study", "contender", "pieces", "least", "median", "most", "left out"):
            shown.add_column(
                column, justify="left" if column in ("study", "contender") else "right"
            )
        for study, name in dict.fromkeys(zip(table["study"], table["contender"], strict=True)):
            of_both = (table["study"] == study) & (table["contender"] == name)
            own = pd.DataFrame(table[of_both])
            ratios = own["total_by_fused"].dropna()
            left_out = int(own["left_out"].notna().sum()) if "left_out" in own else 0
            if len(ratios) or left_out:
                numbers = (ratios.min(), ratios.median(), ratios.max()) if len(ratios) else ()
                cells = [f"{x:.3g}" for x in numbers] or [""] * 3
                shown.add_row(study, name, str(len(ratios)), *cells, str(left_out))
        console.print(shown)
    if "forward_share_of_copy" in table:
        console.print(_roofline_table(table))


def _roofline_table(table: pd.DataFrame) -> Table:
    """Times of the kernels and their share of a copy's bandwidth (and of the fastest copy's)."""
    own = pd.DataFrame(table[table["study"] == "roofline"])
    speeds = dict(zip(own["contender"], own["gb_per_s"], strict=True))
    copies = f"{speeds['copy']:.1f} GB/s (the fastest {speeds['copy past the caches']:.1f})"
    shown = Table(title=f"share of the bandwidth of a copy, {copies}")
    shown.add_column("kernel")
    for part in ("forward", "backward"):
        shown.add_column(f"{part} ms", justify="right")
        shown.add_column("share", justify="right")
    for row in own.dropna(subset="forward_mb").to_dict("records"):
        cells: list[Any] = [row["contender"]]
        for part in ("forward", "backward"):
            share, of_fastest = (
                row[f"{part}_share_of_{copy}"] for copy in ("copy", "copy_past_the_caches")
            )
            cells += [f"{row[f'{part}_ms_median']:.1f}", f"{share:.0%} ({of_fastest:.0%})"]
        shown.add_row(*cells)
    return shown
