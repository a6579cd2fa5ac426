"""`blockspike evaluate NEURON.json --recording FILE`: test a fitted neuron, and draw such tests."""

import json
import re
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from blockspike.data.parts import Part, beside
from blockspike.data.recordings import load_recording
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.files import write_text
from blockspike.fitting.fitted_neuron import FittedNeuron, load_neuron
from blockspike.fitting.parameters import simulated_trace
from blockspike.fitting.rates import Segment, rates_by_current
from blockspike.fitting.scores import Prediction, predict, segment_scores
from blockspike.plots.cells import (
    CellTraces,
    n_points,
    rate_steps,
    smoothed_hz,
    spikes_of,
    thinned,
)
from blockspike.plots.recording import recording_fit
from blockspike.plots.style import use_style

_SHOWN_TRIALS = 10  # simulated


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


def traces_of_fit(
    data: RecordingsDataModule,
    neurons: Sequence[FittedNeuron],
    train: list[list[Prediction]],
    test: list[list[Prediction]],
    scores: list[pd.DataFrame],
) -> list[CellTraces]:
    """Traces of every cell: its predictions of both parts, and the scores of its test segments."""
    cells = []
    for cell, neuron in enumerate(neurons):
        traces = cell_traces(
            neuron,
            _currents(data.test, cell, data.scale_pa[cell]),
            data.test.scored(cell),
            test[cell],
            scores[cell],
            n_cells=len(neurons),
            titles=data.test_titles[cell],
            voltage_mv=data.test_voltage_mv[cell],
            # The recorded current, which the neuron was not given if it has a scale of its own.
            shown_pa=_currents(data.test, cell, data.test_scale_pa[cell]),
            training=_segments(
                _ends(_currents(data.train, cell, data.scale_pa[cell]), data.train.scored(cell)),
                data.train.scored(cell),
                train[cell],
            ),
        )
        cells.append(traces)
    return cells


def cell_traces(
    neuron: FittedNeuron,
    current_pa: Sequence[np.ndarray],
    recorded: Sequence[np.ndarray],
    predicted: Sequence[Prediction],
    scores: pd.DataFrame,
    *,
    titles: Sequence[str],
    voltage_mv: np.ndarray | None,
    n_cells: int = 1,
    shown_pa: Sequence[np.ndarray] | None = None,
    training: Sequence[Segment] = (),
) -> CellTraces:
    """Traces of one cell.

    Args:
        neuron: the fitted neuron.
        current_pa: current [T] of each segment that it was simulated with.
        recorded: trains [R, n] of its last n steps, those that are scored.
        predicted: predictions of the same steps.
        scores: scores of the segments, a row each.
        titles, voltage_mv: see `CellTraces`; voltages [B, n].
        n_cells: number of cells that share a page.
        shown_pa: currents to show, if they differ from `current_pa`.
        training: training segments, for the rates against the current.
    """
    dt_ms, most = neuron.dt_ms, n_points(n_cells, len(recorded))
    shown_pa = _ends(current_pa if shown_pa is None else shown_pa, recorded)
    membrane, threshold = (
        _rows(_ends(x, recorded)) for x in _membrane_and_threshold(neuron, current_pa)
    )
    tested = _segments(shown_pa, recorded, predicted)
    shown_trials = [np.stack(list(x.trials(_SHOWN_TRIALS))) for x in predicted]
    rates, are_steps = rates_by_current([*training, *tested], dt_ms)
    shown = _rows(shown_pa)
    every = rate_steps(dt_ms, shown.shape[1], most)
    is_test = np.arange(len(rates)) >= len(training)
    return CellTraces(
        name=neuron.name,
        titles=list(titles),
        dt_ms=dt_ms,
        n_steps=shown.shape[1],
        n_recorded=np.array([len(trains) for trains in recorded]),
        recorded=spikes_of(recorded),
        model=spikes_of(shown_trials),
        n_model=len(shown_trials[0]),
        current_pa=thinned(shown, most).astype(np.float32),
        membrane=thinned(membrane, most).astype(np.float16),
        threshold=thinned(threshold, most).astype(np.float16),
        voltage_mv=None if voltage_mv is None else thinned(voltage_mv, most).astype(np.float16),
        recorded_hz=_rows([smoothed_hz(trains.mean(0), dt_ms, every) for trains in recorded]),
        model_hz=_rows([smoothed_hz(x.mean, dt_ms, every) for x in predicted]),
        rate_steps=every,
        etv_15ms=scores["etv_15ms"].to_numpy(),
        gamma_4ms=scores["gamma_4ms"].to_numpy(),
        rates=np.column_stack([rates, is_test]).astype(np.float32),
        are_steps=are_steps,
    )


def _currents(part: Part, cell: int, scale_pa: float) -> list[np.ndarray]:
    """Current [T] in pA of each segment of a cell."""
    return [current.astype(float) * scale_pa for current, _ in part.segments(cell)]


def _ends(series: Sequence[np.ndarray], recorded: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The last steps of each series [T], as many as trains [R, n] hold."""
    return [row[len(row) - own.shape[1] :] for row, own in zip(series, recorded, strict=True)]


def _rows(series: Sequence[np.ndarray]) -> np.ndarray:
    """Series of each segment as [B, T], NaN after the end of a shorter one."""
    return np.ascontiguousarray(beside(series).T)


def _segments(
    current_pa: Sequence[np.ndarray],
    recorded: Sequence[np.ndarray],
    predicted: Sequence[Prediction],
) -> list[Segment]:
    means = [prediction.mean for prediction in predicted]
    return [Segment(*row) for row in zip(current_pa, recorded, means, strict=True)]


def _membrane_and_threshold(
    neuron: FittedNeuron, current_pa: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Compute both, [T] of each segment, of the neuron without noise."""
    columns = beside(current_pa)
    driving = torch.from_numpy(np.nan_to_num(columns)).unsqueeze(2)
    trace = simulated_trace(neuron.parameters(), driving, neuron.dt_ms)
    membrane, threshold = (
        [x[: len(row), segment, 0].numpy() for segment, row in enumerate(current_pa)]
        for x in (trace.membrane, trace.threshold)
    )
    return membrane, threshold
