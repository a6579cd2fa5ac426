"""`blockspike train` on recordings: fits every cell at once, scores them, draws them."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from blockspike.commands.trainer import (
    EpochCheckpoint,
    last_checkpoint,
    make_trainer,
    without_known_warnings,
)
from blockspike.config.build import build_data, build_fit
from blockspike.data.recordings import load_recording
from blockspike.data.recordings_datamodule import Part, RecordingsDataModule
from blockspike.figures.recording import recording_fit
from blockspike.figures.style import use_style
from blockspike.files import whole_file, write_npz, write_text
from blockspike.fitting.distance import Window
from blockspike.fitting.fitted_neuron import FittedNeuron, load_neuron
from blockspike.fitting.metrics import explained_temporal_variance, gamma_coincidence
from blockspike.fitting.module import FittingBatch, NeuronFittingModule
from blockspike.fitting.population import NeuronParameters
from blockspike.runs.run import Run
from blockspike.training.guards import FitGuard
from blockspike.training.metrics_file import read_metrics

SIGMAS_MS = (5.0, 10.0, 15.0)
_GAMMA_MS = 4.0
_PREDICTING_TRIALS = 100  # simulated trials whose mean predicts, of a neuron with noise
_SCORED_TRIALS = 10  # of them, that are also scored and shown one by one
_EPOCHS_A_LINE = 20
_SHOWN_CELLS = 3


def build(cfg: DictConfig) -> tuple[RecordingsDataModule, NeuronFittingModule]:
    """Read the recordings and make the population that is fitted to them."""
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg, RecordingsDataModule)
    data.setup()
    for reason in data.failed.values():
        print(f"left out: {reason}", file=sys.stderr)
    return data, build_fit(cfg, len(data.names), data.dt_ms)


def fit_and_score(
    cfg: DictConfig, run: Run, data: RecordingsDataModule, module: NeuronFittingModule
) -> dict[str, Any]:
    """Fit; write `fits.csv`, `fits/<cell>.json`, `traces.npz` and `figures/`.

    Returns:
        Medians over the cells for the run's row.
    """
    fit_s = _fit(cfg, run, data, module)
    parameters, _ = module.chosen()
    arp_ms = module.population.arp * data.dt_ms
    neurons = _neurons(data, parameters, arp_ms)
    for neuron in neurons:
        neuron.save(run.folder / "fits" / f"{neuron.name}.json")
    train, test = (_predictions(neurons, part, data.scale_pa) for part in (data.train, data.test))
    table = pd.concat(
        [
            _parameter_columns(neurons, data, module),
            _scores(data.train, train, data.dt_ms).add_prefix("train_"),
            _scores(data.test, test, data.dt_ms).add_prefix("test_"),
        ],
        axis=1,
    )
    with whole_file(run.folder / "fits.csv") as path:
        table.to_csv(path, index=False)
    traces = _traces(data, test, table)
    write_npz(run.folder / "traces.npz", traces)
    use_style()
    print(recording_fit(traces, run.folder / "figures" / "recording"))
    if data.failed:
        write_text(run.folder / "failed.json", json.dumps(data.failed, indent=1))
    return _summary(table, data, fit_s)


def _fit(cfg, run: Run, data: RecordingsDataModule, module: NeuronFittingModule) -> float:
    """Seconds of all its epochs, also of those before an interruption."""
    last = EpochCheckpoint(
        run.last_checkpoint.parent, filename="last", every_n_epochs=_EPOCHS_A_LINE,
        save_on_train_epoch_end=True, enable_version_counter=False,
    )  # fmt: skip
    guard = FitGuard(run.folder / "bad_batch.ckpt", data.names)
    trainer = make_trainer(cfg, run, [guard, last], _EPOCHS_A_LINE, limit_val_batches=0)
    if trainer.world_size > 1:
        raise ValueError(
            f"trainer: expected one process, since all fits are one batch; got {trainer.world_size}"
        )
    current, target, window = data.batch()
    loader = DataLoader([FittingBatch(current, target, Window(*window))], batch_size=None)  # pyright: ignore
    with without_known_warnings():
        trainer.fit(module, loader, ckpt_path=last_checkpoint(run))
    return float(read_metrics(run.folder / "metrics.csv")["time/epoch_s"].to_numpy(float).sum())


class Prediction(NamedTuple):
    """What a neuron does on one current.

    Attributes:
        mean: of the spikes of all trials with its noise, [T].
        trials: the spikes of the first of them, [R, T]; [1, T] where it has no noise.
        noiseless: spikes [T] without noise.
    """

    mean: np.ndarray
    trials: np.ndarray
    noiseless: np.ndarray


def _predict(neuron: FittedNeuron, current_pa: np.ndarray, first: int = 0) -> Prediction:
    """From step `first` on; nothing of the rest is kept."""
    noiseless = neuron.simulate(current_pa)[first:].astype(np.uint8)
    trials = noiseless[None]
    if neuron.noise:
        trials = neuron.simulate(current_pa, _PREDICTING_TRIALS)[:, first:]
    return Prediction(trials.mean(0, dtype=np.float32), trials[:_SCORED_TRIALS].copy(), noiseless)


def _predictions(
    neurons: list[FittedNeuron], part: Part, scale_pa: np.ndarray
) -> list[list[Prediction]]:
    """Of each cell and segment, for the steps that count.

    `scale_pa` is that of the training current, by which a neuron's gain was divided.
    """
    return [
        [
            _predict(neuron, current * scale, part.first)
            for current in part.current[:, :, cell].double().numpy().T
        ]
        for cell, (neuron, scale) in enumerate(zip(neurons, scale_pa, strict=True))
    ]


def _scores(part: Part, predictions: list[list[Prediction]], dt_ms: float) -> pd.DataFrame:
    """A row a cell: scores of `_segment_scores`, means over segments."""
    rows = []
    for segments, predicted in zip(part.trains, predictions, strict=True):
        of_segments = [
            _segment_scores(trains[:, part.first :], x, dt_ms)
            for trains, x in zip(segments, predicted, strict=True)
        ]
        rows.append(pd.DataFrame(of_segments).mean())
    return pd.DataFrame(rows)


def _segment_scores(trains: np.ndarray, predicted: Prediction, dt_ms: float) -> dict[str, float]:
    """ETV raw and normalised at three σ of the trials' mean; Γ ± 4 ms of trials; rates.

    Also the normalised ETV at 15 ms of single trials, and without noise.
    """
    duration_s, mean = trains.shape[1] * dt_ms / 1000, predicted.mean
    row = {
        "rate_hz": mean.sum(dtype=float) / duration_s,
        "recorded_hz": trains.sum(1).mean() / duration_s,
    }
    for sigma in SIGMAS_MS:
        for name, normalise in (("etv", True), ("raw_etv", False)):
            value = explained_temporal_variance(trains, mean, sigma, dt_ms, normalise)
            row[f"{name}_{sigma:g}ms"] = value
    row["trial_etv_15ms"] = np.mean(
        [explained_temporal_variance(trains, x, 15.0, dt_ms) for x in predicted.trials]
    )
    row["noiseless_etv_15ms"] = explained_temporal_variance(
        trains, predicted.noiseless, 15.0, dt_ms
    )
    try:
        row["gamma_4ms"] = np.mean(
            [gamma_coincidence(trains, x, _GAMMA_MS, dt_ms) for x in predicted.trials]
        )
    except ValueError:  # a trial that fires in every window
        row["gamma_4ms"] = float("nan")
    return {name: float(value) for name, value in row.items()}  # plain numbers, for JSON


def _parameter_columns(
    neurons: list[FittedNeuron], data: RecordingsDataModule, module: NeuronFittingModule
) -> pd.DataFrame:
    best = module.best_distance.argmin(1, keepdim=True)
    return pd.DataFrame(neurons).rename(columns={"name": "cell"}).assign(
        scale_pa=data.scale_pa,
        distance=module.best_distance.gather(1, best)[:, 0].numpy(),
        chosen_epoch=module.best_epoch.gather(1, best)[:, 0].numpy() + 1,
    )  # fmt: skip


def _neurons(
    data: RecordingsDataModule, parameters: NeuronParameters, arp_ms: float
) -> list[FittedNeuron]:
    neurons = []
    for cell, name in enumerate(data.names):
        own = {key: float(x[cell]) for key, x in vars(parameters).items()}
        own["gain_per_pa"] = own.pop("gain") / float(data.scale_pa[cell])
        neurons.append(FittedNeuron(name=name, arp_ms=arp_ms, dt_ms=data.dt_ms, **own))
    return neurons


def _traces(
    data: RecordingsDataModule, predictions: list[list[Prediction]], table: pd.DataFrame
) -> dict[str, Any]:
    """Test current, recorded and simulated spikes of the best, middle and worst cell."""
    order = np.argsort(-table["test_etv_15ms"].to_numpy())
    shown = order[np.unique(np.linspace(0, len(order) - 1, _SHOWN_CELLS).astype(int))]
    part = data.test
    arrays: dict[str, Any] = {"dt_ms": data.dt_ms}
    for k, cell in enumerate(shown):
        row = table.iloc[cell]
        current = part.current[part.first :, 0, cell].numpy() * data.test_scale_pa[cell]
        trains = part.trains[cell][0][:, part.first :]
        arrays |= _shown(k, data.names[cell], current, trains, predictions[cell][0], row, "test_")
    return arrays


def _shown(
    k: int, name: str, current_pa, trains, predicted: Prediction, row, prefix: str
) -> dict[str, Any]:
    """The arrays that `recording_fit` draws as column k."""
    return {
        f"cell{k}_name": name,
        f"cell{k}_current_pa": current_pa,
        f"cell{k}_trains": trains.astype(np.uint8),
        f"cell{k}_model": predicted.trials,
        f"cell{k}_predicted": predicted.mean,
        f"cell{k}_etv_15ms": row[f"{prefix}etv_15ms"],
        f"cell{k}_gamma_4ms": row[f"{prefix}gamma_4ms"],
    }


def _summary(table: pd.DataFrame, data: RecordingsDataModule, fit_s: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "n_cells": len(table), "n_failed": len(data.failed), "fit_s": fit_s,
        "fit_s_per_cell": fit_s / len(table),
    }  # fmt: skip
    for part in ("test", "train"):
        for name in (*(f"etv_{s:g}ms" for s in SIGMAS_MS), "gamma_4ms"):
            values = table[f"{part}_{name}"].dropna().to_numpy()
            quartiles = np.percentile(values, (25, 50, 75)) if len(values) else [float("nan")] * 3
            for label, value in zip(("q25", "median", "q75"), quartiles, strict=True):
                row[f"{part}_{name}_{label}"] = float(value)
    return row


def summary_line(row: dict[str, Any]) -> str:
    """What is printed of a finished fit."""
    etv = ", ".join(f"{row[f'test_etv_{s:g}ms_median']:.3f} (σ {s:g} ms)" for s in SIGMAS_MS)
    return (
        f"{row['n_cells']} cells fitted in {row['fit_s']:.1f} s; on test, median normalised ETV "
        f"{etv}, Γ ± 4 ms {row['test_gamma_4ms_median']:.3f}"
    )


def evaluate_neuron(fit: Path, recording_path: Path, stimulus: str | None) -> dict[str, Any]:
    """Simulate a fitted neuron on a recording's currents; print and write scores beside `fit`.

    `stimulus` chooses one of the recording's by name; None = all.

    Returns:
        Per stimulus the scores; `<fit>_on_<recording>.{json,png}` hold them.

    Raises:
        FileNotFoundError, ValueError: either file is missing or damaged.
    """
    neuron = load_neuron(fit)
    recording = load_recording(recording_path, stimuli=None if stimulus is None else [stimulus])
    current = recording.current(neuron.dt_ms)
    result: dict[str, Any] = {}
    arrays: dict[str, Any] = {"dt_ms": neuron.dt_ms}
    for k, shown in enumerate(recording.stimuli):
        trains = recording.spike_trains(k, neuron.dt_ms)
        predicted = _predict(neuron, current[k])
        row = _segment_scores(trains, predicted, neuron.dt_ms)
        name = f"{recording.name}, {shown}"
        once = recording.stimuli.count(shown) == 1
        result[shown if once else f"{shown} ({k})"] = row
        arrays |= _shown(k, name, current[k], trains, predicted, row, "")
        print(
            f"{neuron.name} on {name}: normalised ETV {row['etv_15ms']:.3f} (σ 15 ms), "
            f"Γ ± 4 ms {row['gamma_4ms']:.3f}, {row['rate_hz']:.1f} Hz "
            f"(recorded {row['recorded_hz']:.1f} Hz)"
        )
    out = fit.with_name(f"{fit.stem}_on_{recording.name}.json")
    write_text(out, json.dumps(result, indent=1))
    use_style()
    print(recording_fit(arrays, out.with_suffix("")))
    return result
