"""Recordings as files, for tests of fits."""

from pathlib import Path

import numpy as np

from blockspike.data.recordings import Recording


def write_recording(recording: Recording, path: Path) -> None:
    """Write the first stimulus of a recording as `.npz`."""
    trials = [np.asarray(trial[0], float) for trial in recording.spike_times_s]
    np.savez(
        path, current_pa=recording.current_pa[0], dt_ms=recording.dt_ms,
        spike_times_s=np.concatenate(trials),
        spike_repeat=np.repeat(np.arange(len(trials)), [len(t) for t in trials]),
    )  # fmt: skip
