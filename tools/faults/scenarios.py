"""The commands that faults are injected into, their small data, and what must come out."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from blockspike.data.event_file import read_event_file
from blockspike.data.nmnist import prepare_nmnist
from blockspike.files import read_json
from blockspike.fitting.synthetic_cells import SyntheticCells
from blockspike.runs.sweeps import run_states
from blockspike.training.checkpoint_io import load_plain
from blockspike.training.metrics_table import read_metrics

sys.path += [str(Path(__file__).parents[2] / folder) for folder in ("tests", "tests/data")]
from made_data import make_nmnist, make_shd  # pyright: ignore[reportMissingImports]

from made_recordings import write_recording

TESTS = Path(__file__).parents[2] / "tests"
# What a result must not depend on: when, where and how fast it was made.
_VOLATILE = re.compile(r"time/|epoch_s|train_s|fit_s|git_|pid|started|ended|version|machine|load")
_EVENTS = (
    "data=nmnist", "data.path=events.h5", "data.n_steps=20", "data.dt_ms=20", "threads=1",
    "network.n_hidden=6", "progress=false",
)  # fmt: skip
_FIT = ("population.n_starts=4", "population.arp_ms=2", "threads=1", "progress=false")
RUN = "outputs/mine/default/seed=0"


@dataclass(frozen=True)
class Scenario:
    """A command and the folder that it starts from.

    Attributes:
        name: of the command, as the table has it.
        args: of `blockspike`.
        base: folder that is copied for each fault.
        program: what runs it as a process of its own.
    """

    name: str
    args: tuple[str, ...]
    base: Path
    program: tuple[str, ...] = (sys.executable, "-m", "blockspike")

    def copy(self, to: Path) -> Path:
        """A fresh folder to run it in."""
        shutil.rmtree(to, ignore_errors=True)
        return Path(shutil.copytree(self.base, to, symlinks=True))

    def having(self, name: str, base: Path) -> "Scenario":
        """The same command in another folder."""
        return replace(self, name=name, base=base)


def make_bases(root: Path) -> dict[str, Path]:
    """Folders with data: raw recordings, prepared events, a cell's recording."""
    bases = {name: root / name for name in ("raw", "raw_shd", "download", "events", "cell")}
    for folder in bases.values():
        folder.mkdir(parents=True)
    made = make_nmnist(root / "made", 6, 2, n_events=200)
    for part in ("Train", "Test"):
        with zipfile.ZipFile(root / "raw" / f"{part.lower()}.zip", "w") as archive:
            for file in sorted((made / part).rglob("*.bin")):
                archive.write(file, file.relative_to(made).as_posix())
    for seed, part in enumerate(("train", "test")):
        make_shd(root / "raw_shd" / f"shd_{part}.h5", seed=seed)
    write_cell(root / "cell" / "cell.npz", seed=0)
    prepare_nmnist(make_nmnist(root / "other", 6, 2, n_events=210), root / "other.h5")
    return bases


def write_cell(path: Path, seed: int) -> None:
    """A made recording."""
    (cell,) = SyntheticCells(n_cells=1, duration_s=3.0, seed=seed).cells()
    write_recording(cell, path)


def make_scenarios(bases: dict[str, Path]) -> dict[str, Scenario]:
    """Those that need no finished run."""
    prepare = ("prepare", "data=nmnist", "data.path=events.h5")
    train = ("train", "experiment_name=mine", *_EVENTS, "trainer.max_epochs=3")
    served = (sys.executable, str(Path(__file__).with_name("served.py")))
    sweep = ("train", "-m", "experiment_name=mine", *_EVENTS, "trainer.max_epochs=2", "seed=0,1")
    fit = ("fit", "data.path=cell.npz", *_FIT)
    recovery = ("fit", "experiment=recovery", "data.n_cells=2", "data.duration_s=3", *_FIT)
    known = [
        Scenario("prepare", (*prepare, "data.raw=."), bases["raw"]),
        Scenario(
            "prepare shd", ("prepare", "data=shd", "data.path=e.h5", "data.raw=."), bases["raw_shd"]
        ),
        Scenario(
            "download",
            (*prepare, "data.raw=raw", "data.download=true"),
            bases["download"],
            served,
        ),
        Scenario("train", (*train, f"hydra.run.dir='{RUN}'"), bases["events"]),
        Scenario("sweep", sweep, bases["events"]),
        Scenario("fit", (*fit, "trainer.max_epochs=41"), bases["cell"]),
        Scenario("recovery", (*recovery, "trainer.max_epochs=41"), bases["cell"]),
    ]
    return {scenario.name: scenario for scenario in known}


def make_later_scenarios(finished: Path, evaluated: Path, collected: Path) -> dict[str, Scenario]:
    """Those that read finished runs."""
    bench = (
        "benchmark", "study=length", "n_steps=32,64", "arp_steps=4", "batch_size=2",
        "contenders=fused,standard", "rounds=2", "memory=false", "threads=1",
    )  # fmt: skip
    known = [
        Scenario("evaluate", ("evaluate", f"run={RUN}", "threads=1"), finished),
        Scenario("figures", ("figures", f"run={RUN}"), evaluated),
        Scenario("collect", ("collect",), finished),
        Scenario("report", ("report", f"run={RUN}", "threads=1"), collected),
        Scenario("status", ("status",), finished),
        Scenario("benchmark", bench, finished),
    ]
    return {scenario.name: scenario for scenario in known}


def outcome(folder: Path) -> dict[str, Any]:
    """Each file's content, less what depends on the moment; damaged files raise.

    Of pictures in SVG only that they are whole, since Matplotlib numbers their parts at random. Of
    runs also their state, as `blockspike status` shows it: a run that was killed after its result
    and before its last status stays as it is.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in _PASSING)
    files = [p for p in files if not p.name.startswith((".status.json.", "status.json"))]
    found = {str(p.relative_to(folder)): _content(p) for p in files}
    states = run_states(folder / "outputs")[["run", "state", "epochs", "error"]]
    return found | {"states": states.to_numpy().tolist()}


# Locks, Hydra's note, which nothing reads, and logs, which tell of every start and its time.
_PASSING = (".lock", "multirun.yaml", "train.log", "fit.log")


def damaged(folder: Path) -> list[str]:
    """Files under their final names that cannot be read."""
    found = []
    for path in folder.rglob("*"):
        is_final = not path.name.startswith(".") and path.suffix != ".part"
        if path.is_file() and is_final and path.name not in _PASSING:
            try:
                _content(path)
            except Exception as error:
                found.append(f"{path.relative_to(folder)}: {error!r}"[:300])
    return found


def _content(path: Path) -> Any:
    match path.suffix:
        case ".json":
            return _settled(read_json(path))
        case ".ckpt":
            return _of_checkpoint(load_plain(path))
        case ".npz":
            with np.load(path) as arrays:
                return {name: _hash(arrays[name].tobytes()) for name in arrays}
        case ".parquet":
            return pd.read_parquet(path).pipe(_settled_table)
        case ".h5" if path.parent.name != "raw" and not path.name.startswith("shd_"):
            return read_event_file(path).verified_sha256(), _hash(path.read_bytes())
        case ".yaml":
            known = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
            assert isinstance(known, dict)
            return {k: v for k, v in known.items() if k not in ("run_dir", "output_dir")}
        case ".csv" if path.name == "metrics.csv":
            return read_metrics(path).pipe(_settled_table)
        case ".csv":
            return pd.read_csv(path).pipe(_settled_table)
        case ".svg":
            return len(list(xml.etree.ElementTree.parse(path).iter())) > 1
        case ".html":
            assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
            return True
        case ".jsonl":
            whole_lines = path.read_text(encoding="utf-8").split("\n")[
                :-1
            ]  # a cut-off one is left out
            rows = [row for line in whole_lines for row in json.loads(line)]
            return sorted((row["study"], row["n_steps"], row["contender"]) for row in rows)
    return _hash(path.read_bytes())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _settled(v) for k, v in value.items() if not _VOLATILE.search(str(k))}
    return repr(value)  # NaN equals NaN


def _settled_table(table: pd.DataFrame) -> dict[str, Any]:
    if "total_ms_median" in table:  # of the benchmark
        return {"rows": table[["study", "n_steps", "contender"]].to_numpy().tolist()}
    return {str(c): repr(table[c].tolist()) for c in table if not _VOLATILE.search(str(c))}


def _of_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    weights = {k: _hash(v.numpy().tobytes()) for k, v in checkpoint["state_dict"].items()}
    return {"epoch": checkpoint["epoch"], **weights}


class Server:
    """Serves a folder over https, slowly enough to be interrupted; a process of its own."""

    def __init__(self, folder: Path):
        certificate = TESTS / "data" / "localhost.pem"
        program = str(Path(__file__).with_name("served.py"))
        self._process = subprocess.Popen(
            [sys.executable, program, "--serve", str(folder), str(certificate)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        os.environ["FAULTS_SERVER"] = f"https://127.0.0.1:{port}/"
        os.environ["FAULTS_RAW"] = str(folder)
        os.environ["REQUESTS_CA_BUNDLE"] = str(certificate)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
