"""Measure speeds side by side; rows are added to tables/speed.csv and tables/dynamics.csv.

    python -m benchmarks.run                       # every study on the CPU, about an hour
    python -m benchmarks.run length layers         # two of them
    python -m benchmarks.run length --batch-size 32 64 128 --contenders fused blocks standard

After a kill, the same command continues. Libraries that are not installed (extra `peers`) get a row
that says so. OMP_NUM_THREADS sets the number of threads.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
CONTENDERS = (*layers.CONTENDERS, "plain loop")
_SHOWN = r"contender|case|dt_ms|(total_ms_median|by_fused|of_copy|error_ms|peak_mib|left_out)$"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the tables lack, and print all of what was asked for."""
    studies, output_dir, options = parse(arguments)
    made = {
        "rounds_asked": options.rounds,
        "longest_turn_s": options.longest_turn_s,
        "memory": options.memory,
        "blockspike": version("blockspike"),
        **{name: provenance()[name] for name in ("git_sha", "git_dirty")},
    }
    for study in studies:
        name = "dynamics" if study in _OF_DYNAMICS else "speed"
        table = Table(output_dir / "tables" / f"{name}.csv")
        for piece in STUDIES[study](options):
            about = {"study": study, **piece.key, **machine(piece.device), **made}
            if not _is_known(piece, table.find(about)):
                load = {"load": round(os.getloadavg()[0], 2)}
                table.replace(about, [row | about | load for row in piece.measure()])
            print(f"\n{study}: {', '.join(f'{k} {x}' for k, x in piece.key.items())}")
            rows = pd.DataFrame(table.find(about)).filter(regex=_SHOWN)
            print(rows.loc[:, (rows != "").any()].to_string(index=False), flush=True)


def parse(arguments: Sequence[str] | None) -> tuple[list[str], Path, Options]:
    """Studies, output folder and options of a command line; a wrong one ends the program."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.run", description=f"{__doc__}\n{Options.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    usual = [name for name in STUDIES if name != "gpu"]
    parser.add_argument("studies", nargs="*", default=usual, help=", ".join(STUDIES))
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    for name in ("rounds", "longest_turn_s", "data"):
        default = getattr(Options, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    for name in ("n_steps", "arp_steps", "batch_size", "n_units", "n_layers"):
        default, option = getattr(Options, name), f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, nargs="+", default=default, metavar="N")
    given = vars(parser.parse_args(arguments))
    if unknown := set(given["studies"]) - set(STUDIES):
        parser.error(f"studies: expected some of {', '.join(STUDIES)}, got {unknown.pop()}")
    if given["device"] == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected cpu, since PyTorch finds no CUDA GPU, got cuda")
    studies, output_dir = given.pop("studies"), given.pop("output_dir")
    return studies, output_dir, Options(**given)


def _is_known(piece: Piece, rows: Sequence[Mapping[str, str]]) -> bool:
    """Whether each contender has a row, measured with the installed version of its library."""
    versions = {row["contender"]: row.get("version", "") for row in rows}
    return all(versions.get(name) == (version_of(name) or "") for name in piece.contenders)


if __name__ == "__main__":
    main()
