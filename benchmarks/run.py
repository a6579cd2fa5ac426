"""Measure speeds side by side; rows are added to tables/speed.csv and tables/dynamics.csv.

    python -m benchmarks.run                       # every study on the CPU, about an hour
    python -m benchmarks.run length layers         # two of them
    python -m benchmarks.run length --batch-size 32 64 128 --contenders fused blocks standard

After a kill, the same command continues. Libraries that are not installed (extra `peers`) get a row
that says so.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from benchmarks import dynamics, fitting, layers, roofline, tradeoff, training_step
from benchmarks.contenders import version_of
from benchmarks.table import Options, Piece, Table
from benchmarks.timing import machine
from blockspike.runs.run import provenance

STUDIES: dict[str, Callable[[Options], Iterator[Piece]]] = {
    "roofline": roofline.pieces,
    "dynamics": dynamics.pieces,
    "step": training_step.pieces,
    "fit": fitting.pieces,
    "tradeoff": tradeoff.pieces,
    "libraries": layers.libraries,
    "length": layers.length,
    "layers": layers.layers,
    "gpu": dynamics.gpu,
}
_OF_DYNAMICS = ("dynamics", "step", "fit", "gpu")  # written to dynamics.csv
CONTENDERS = tuple(dict.fromkeys((*layers.CONTENDERS, *dynamics.METHODS)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the tables lack, and print a summary."""
    studies, output_dir, options = parse(arguments)
    source = provenance()
    made = {
        "rounds_asked": options.rounds,
        "longest_turn_s": options.longest_turn_s,
        "memory": options.memory,
        "blockspike": version("blockspike"),
        "git_sha": source["git_sha"],
        "git_dirty": source["git_dirty"],
    }
    found = []
    for study in studies:
        name = "dynamics" if study in _OF_DYNAMICS else "speed"
        table = Table(output_dir / "tables" / f"{name}.csv")
        pieces = [piece for piece in STUDIES[study](options) if piece.contenders]
        if not pieces:
            print(f"{study}: has none of the chosen contenders")
        for i, piece in enumerate(pieces, start=1):
            about = {"study": study, **piece.key, **machine(piece.device), **made}
            if not _is_known(piece, table.find(about)):
                load = round(os.getloadavg()[0], 2)
                table.replace(about, [{**r, **about, "load": load} for r in piece.measure()])
            rows = table.find(about)
            print(f"{study} {i}/{len(pieces)}: {_one_line(piece, rows)}", flush=True)
            found += rows
    if found:
        print(summary(pd.DataFrame(found)))


def parse(arguments: Sequence[str] | None) -> tuple[list[str], Path, Options]:
    """Studies, output folder and options of a command line; a wrong one ends the program."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.run", description=__doc__, epilog=Options.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    known = ", ".join(STUDIES)
    parser.add_argument(
        "studies", nargs="*", metavar="STUDY", help=f"{known}; default: all but gpu"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"))
    choices = {"contenders": CONTENDERS, "device": ("cpu", "cuda")}
    for field in fields(Options):
        option, default = f"--{field.name.replace('_', '-')}", field.default
        if isinstance(default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=default)
            continue
        several = default is None or isinstance(default, tuple)
        kind = str if default is None else int if several else type(default)
        parser.add_argument(
            option, nargs="+" if several else None, type=kind, default=default,
            choices=choices.get(field.name), metavar=field.name.upper(),
        )  # fmt: skip
    given = vars(parser.parse_args(arguments))
    studies = given.pop("studies") or [name for name in STUDIES if name != "gpu"]
    if unknown := [name for name in studies if name not in STUDIES]:
        parser.error(f"STUDY: expected some of {known}, got {unknown[0]}")
    if given["rounds"] < 2:
        parser.error(f"--rounds: expected at least 2, got {given['rounds']}")
    if given["device"] == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected cpu, since PyTorch finds no CUDA GPU, got cuda")
    if "gpu" in studies and given["device"] == "cpu":
        parser.error("--device: expected cuda for the study gpu, got cpu")
    torch.set_num_threads(given.pop("threads"))
    output_dir = given.pop("output_dir")
    return studies, output_dir, Options(**given)


def _is_known(piece: Piece, rows: Sequence[Mapping[str, str]]) -> bool:
    """Whether each contender has a row, measured with the installed version of its library."""
    versions = {row["contender"]: row.get("version", "") for row in rows}
    return all(versions.get(name) == (version_of(name) or "") for name in piece.contenders)


def _one_line(piece: Piece, rows: Sequence[Mapping[str, str]]) -> str:
    """A piece's size, the time of `fused` and the others' ratios to it."""
    size = ", ".join(f"{k} {x}" for k, x in piece.key.items() if k != "inputs")
    ratios = [
        f"{row['contender']} × {float(row['total_by_fused']):.3g}"
        for row in rows
        if row.get("total_by_fused") and not row.get("dt_ms") and row["contender"] != "fused"
    ]
    return "; ".join([size, *ratios])


def summary(table: pd.DataFrame) -> str:
    """Times relative to `fused` by study and contender; the kernels' shares of a copy's bandwidth."""
    text = []
    if "total_by_fused" in table:
        ratios = table.assign(ratio=pd.to_numeric(table["total_by_fused"]))
        groups = ratios.groupby(["study", "contender"], sort=False)["ratio"]
        found = groups.agg(["count", "min", "median", "max"])
        text += [
            "times as long as fused, forward and backward",
            found.to_string(float_format="%.3g"),
        ]
    kernels = table[table["study"] == "roofline"].dropna(axis=1, how="all")
    if len(kernels):
        columns = ["gb_per_s", *(c for c in kernels if "ms_median" in c or "share_of" in c)]
        text.append(kernels.set_index("contender")[columns].to_string(na_rep=""))
    return "\n\n".join(text)


if __name__ == "__main__":
    main()
