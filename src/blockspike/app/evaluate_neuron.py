"""`blockspike evaluate NEURON.json --recording FILE`: test a fitted neuron."""

import json
import re
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from blockspike.app.cell_traces import cell_traces
from blockspike.data.recordings import load_recording
from blockspike.figures.recording import recording_fit
from blockspike.files import write_text
from blockspike.fitting.fitted_neuron import load_neuron
from blockspike.fitting.scores import predict, segment_scores
from blockspike.plots.style import use_style


def evaluate_neuron(
    fit: Path, recording_path: Path, stimulus: str | None, electrode: str | None = None
) -> dict[str, Any]:
    """Simulate a fitted neuron on a recording's currents; print and save its scores.

    Args:
        fit: file of the neuron; `<fit>_on_<recording>.{json,png}` are written beside it, with the
            stimulus in their name if one is chosen. The picture shows up to three stimuli.
        recording_path: file of the recording.
        stimulus: name of one of its stimuli; None = all.
        electrode: name or number of one of its electrodes; None = the only one.

    Returns:
        Stimulus → scores.

    Raises:
        FileNotFoundError, ValueError: either file is missing or damaged.
    """
    neuron = load_neuron(fit)
    recording = load_recording(
        recording_path, stimuli=None if stimulus is None else [stimulus], electrode=electrode
    )
    trains = [recording.spike_trains(k, neuron.dt_ms) for k in range(len(recording.stimuli))]
    current = recording.current(neuron.dt_ms)
    current = [row[: own.shape[1]] for row, own in zip(current, trains, strict=True)]
    predicted = [predict(neuron, row) for row in current]
    result: dict[str, Any] = {}
    for k, shown in enumerate(recording.stimuli):
        row = segment_scores(trains[k], predicted[k], neuron.dt_ms)
        is_only = recording.stimuli.count(shown) == 1
        own_name = shown if is_only else f"{shown} ({k})"
        result[own_name] = row
        kind = "normalised ETV" if len(trains[k]) > 1 else "ETV"
        print(
            f"{neuron.name} on {recording.name}, {own_name}: {kind} {row['etv_15ms']:.3f} "
            f"(σ 15 ms), Γ ± 4 ms {row['gamma_4ms']:.3f}, {row['rate_hz']:.1f} Hz "
            f"(recorded {row['recorded_hz']:.1f} Hz)"
        )
    chosen = "" if stimulus is None else re.sub(r"[^\w.+-]+", "_", f"_{stimulus}")
    out = fit.with_name(f"{fit.stem}_on_{recording.name}{chosen}.json")
    finite = {
        name: {k: None if isnan(x) else x for k, x in row.items()} for name, row in result.items()
    }
    write_text(out, json.dumps(finite, indent=1))  # JSON has no NaN
    use_style()
    cell = cell_traces(
        neuron, current, trains, predicted, pd.DataFrame(list(result.values())),
        titles=list(result), voltage_mv=None,
    )  # fmt: skip
    print(recording_fit([cell], out.with_name(out.stem)))
    return result
