"""The files that pages ask their readers to have."""

import os
import re
from pathlib import Path

import numpy as np

from printed_commands import ROOT


def write_cell(path: Path) -> None:
    """Write the recording that pages call my_cell.npz, as long as the longest of them asks for."""
    from blockspike.fitting.synthetic_cells import SyntheticCells

    (cell,) = SyntheticCells(n_cells=1, n_trials=2, duration_s=15.0).cells()
    trials = [np.asarray(trial[0], float) for trial in cell.spike_times_s]
    np.savez(
        path, current_pa=cell.current_pa, dt_ms=cell.dt_ms,
        spike_times_s=np.concatenate(trials),
        spike_repeat=np.repeat(np.arange(len(trials)), [len(t) for t in trials]),
    )  # fmt: skip


def write_lab(folder: Path) -> dict[str, str]:
    """Write exactly the files of docs/howto/extend.md; return the environment it asks for."""
    page = (ROOT / "docs" / "howto" / "extend.md").read_text()
    python, yaml = (_blocks(page, language) for language in ("python", "yaml"))
    names = re.findall(r"`(my_conf/[a-z_/]+\.yaml)`", page)
    assert len(names) == len(yaml) == 2 and len(python) == 4
    named = {source.splitlines()[0].removeprefix("# "): source for source in python}
    for name, source in (named | dict(zip(names, yaml, strict=True))).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    _write_tones(folder / "my_recordings")
    assert "\nexport PYTHONPATH=.\n" in page
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def _write_tones(folder: Path) -> None:
    """Spikes that walk up or down 20 channels in 50 ms, with noise."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split, n_samples in (("train", 200), ("test", 40)):
        label = rng.integers(0, 2, n_samples)
        channel = np.tile(np.arange(20), n_samples)
        falls = np.repeat(label, 20) == 1
        time_ms = 2.5 * np.where(falls, 19 - channel, channel) + rng.uniform(0, 2, len(channel))
        order = np.lexsort((time_ms, np.repeat(np.arange(n_samples), 20)))
        np.savez(
            folder / f"{split}.npz", time_ms=time_ms[order], channel=channel[order],
            n_events=np.full(n_samples, 20), label=label,
        )  # fmt: skip
