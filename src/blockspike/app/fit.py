"""`blockspike fit`: fit neurons to all recordings at once, score them and draw them."""

import json
import sys
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from blockspike.app.build import build_fit, build_trainer, open_data
from blockspike.app.cell_traces import traces_of_fit
from blockspike.app.fit_intervals import constrained_summary, determined, fit_intervals
from blockspike.app.trainer import (
    EpochCheckpoint,
    finished_row,
    last_checkpoint,
    progress_and_metrics,
    recorded,
    start,
)
from blockspike.app.wandb_run import log_result
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.figures.cell_traces import arrays_of
from blockspike.figures.recording import recording_fit
from blockspike.files import whole_file, write_npz, write_text
from blockspike.fitting.distance import Window
from blockspike.fitting.fitted_neuron import FittedNeuron
from blockspike.fitting.likelihood import likelihoods_of_cells, share_while_refractory
from blockspike.fitting.millivolts import millivolts_of_cells, voltage_errors_of_cells
from blockspike.fitting.module import FittingBatch, NeuronFittingModule
from blockspike.fitting.parameters import NeuronParameters
from blockspike.fitting.scores import (
    SIGMAS_MS,
    null_etv,
    predictions_of,
    scores_of_cells,
    scores_of_segments,
)
from blockspike.fitting.voltage import RecordedVoltage, check_fitted, recorded_voltage
from blockspike.plots.style import use_style
from blockspike.runs.log import LOGGER
from blockspike.runs.run import Run
from blockspike.training.guard import Guard
from blockspike.training.metrics_table import read_metrics

_EPOCHS_A_LINE = 20
_WHILE_REFRACTORY = 0.05  # share of a recording's intervals that is reported
_SUMMARISED = (
    "gamma_4ms", "gamma_a_2ms", "md_star_4ms", "rate_error", "noiseless_etv_15ms",
    "reliability_etv_15ms", "null_etv_15ms", "bits_per_spike", "etv_15ms_se",
)  # fmt: skip


def fit(cfg: DictConfig) -> dict[str, Any]:
    """Fit neurons to recordings in a run's folder, and score them on test data.

    An interrupted run continues, and a finished one is skipped. The folder gets `fits.csv`,
    `fits/<cell>.json`, `traces.npz` and `figures/`.

    Returns:
        The run's row, as in `result.json`; scores are medians over the cells.

    Raises:
        ValueError: a setting is wrong, or the folder holds a run with another configuration or of
            other data.
        FileNotFoundError: the recordings are missing.
    """
    run = Run(cfg.run_dir)
    _check(cfg)
    if (row := finished_row(cfg, run)) is not None:
        return row
    start(cfg)
    data = open_data(cfg, recordings=True)
    for reason in data.failed.values():
        print(f"left out: {reason}", file=sys.stderr)
    module = build_fit(cfg, len(data.names), data.dt_ms, data.names)
    voltage = _voltage(data) if module.voltage_weight else None
    with recorded(cfg, run, data) as row:
        own, has_bar = progress_and_metrics(cfg.progress, run, _EPOCHS_A_LINE)
        own.append(Guard(run.folder / "bad_batch.ckpt", each_step=False))
        often = {"every_n_epochs": _EPOCHS_A_LINE, "save_on_train_epoch_end": True}
        own.append(EpochCheckpoint(run.last_checkpoint, **often))
        options: dict[str, Any] = {"enable_progress_bar": has_bar, "limit_val_batches": 0}
        trainer = build_trainer(cfg, run.folder, own, **options)

        current, target, window = data.batch()
        trains, is_there = data.trials() if module.loss == "likelihood" else (None, None)
        batch = FittingBatch(current, target, Window(*window), trains, is_there, voltage)
        loader = DataLoader([batch], batch_size=None)  # pyright: ignore
        trainer.fit(module, loader, ckpt_path=last_checkpoint(run))

        row |= (results := _score(cfg, run, data, module, voltage))
        log_result(run, row, results, module, data)
        run.write_result(row)
        LOGGER.info(_summary(row))
    print(f"{run.folder}: {_summary(row)}")
    return row


def _check(cfg: DictConfig) -> None:
    """Refuse options of the trainer that would mix the cells, which are one batch."""
    if "early_stopping" in (cfg.callbacks or {}):
        raise ValueError("callbacks: expected fit.patience=… for a fit, got early_stopping")
    alone = {"gradient_clip_val": None, "accumulate_grad_batches": 1, "devices": 1}
    for name, value in alone.items():
        got = cfg.trainer.get(name, value)
        if got != value and str(got) != str(value):
            raise ValueError(
                f"trainer.{name}: expected {'null' if value is None else value} for a fit, whose "
                f"cells are one batch (fit.gradient_clip clips each start), got {got}"
            )


def _voltage(data: RecordingsDataModule) -> RecordedVoltage:
    """Recorded voltage of the cells.

    Raises:
        ValueError: a recording has none.
    """
    _, _, window = data.batch()
    found = recorded_voltage(data.names, data.train, data.train_voltage_mv, data.dt_ms)
    check_fitted(data.names, found, Window(*window))
    return found


def _score(
    cfg: DictConfig,
    run: Run,
    data: RecordingsDataModule,
    module: NeuronFittingModule,
    voltage: RecordedVoltage | None,
) -> dict[str, Any]:
    """Write the fitted neurons, their scores and their picture; return the row's columns."""
    fit_s = float(read_metrics(run.folder / "metrics.csv")["time/epoch_s"].to_numpy(float).sum())
    parameters, _ = module.chosen()
    neurons = [
        FittedNeuron.of(parameters, cell, name, float(data.scale_pa[cell]), data.dt_ms)
        for cell, name in enumerate(data.names)
    ]
    for cell, neuron in enumerate(neurons):
        neuron.save(run.folder / "fits" / f"{neuron.name}.json")
        _warn_of_refractory_period(neuron, data.train.scored(cell))
    train, test = (predictions_of(neurons, part, data.scale_pa) for part in (data.train, data.test))
    of_train = scores_of_segments(data.train, train, data.dt_ms)
    of_test = scores_of_segments(data.test, test, data.dt_ms)
    table = pd.concat(
        [
            _parameter_columns(neurons, parameters, data, module),
            fit_intervals(cfg, run, data, module, voltage),
            scores_of_cells(data.train, of_train).add_prefix("train_"),
            scores_of_cells(data.test, of_test).add_prefix("test_"),
            likelihoods_of_cells(parameters, data.train, data.test, data.dt_ms),
            _voltage_columns(parameters, data),
        ],
        axis=1,
    )
    table["test_null_etv_15ms"] = [
        null_etv(data.train, data.test, cell, data.dt_ms, data.test_scale_pa[cell] / scale_pa)
        for cell, scale_pa in enumerate(data.scale_pa)
    ]
    with whole_file(run.folder / "fits.csv") as path:
        table.to_csv(path, index=False)
    traces = traces_of_fit(data, neurons, train, test, of_test)
    write_npz(run.folder / "traces.npz", arrays_of(traces))
    use_style()
    print(recording_fit(traces, run.folder / "figures" / "recording"))
    if data.failed:
        write_text(run.folder / "failed.json", json.dumps(data.failed, indent=1))
    row = {"neuron": module.population.neuron, "not_constrained": constrained_summary(table)}
    return row | _medians(table, data, fit_s)


def _voltage_columns(parameters: NeuronParameters, data: RecordingsDataModule) -> pd.DataFrame:
    """Scales in mV, errors of the voltage, and the electrodes that were compensated."""
    scale_pa, dt_ms = data.scale_pa, data.dt_ms
    table = millivolts_of_cells(parameters, data.train, data.train_voltage_mv, scale_pa, dt_ms)
    if len(table.columns):
        of_parts = {
            "train": (data.train, data.train_voltage_mv, scale_pa),
            "test": (data.test, data.test_mean_voltage_mv, data.test_scale_pa),
        }
        table = table.assign(**{
            f"{name}_voltage_rms_mv": voltage_errors_of_cells(parameters, table, *of_part, dt_ms)
            for name, of_part in of_parts.items()
        })  # fmt: skip
    electrodes = [x for x in data.compensated if x is not None]
    if not electrodes:
        return table
    return table.assign(
        compensated_mohm=[x.resistance_mohm for x in electrodes],
        compensated_mohm_se=[x.error_mohm for x in electrodes],
        compensated_tau_ms=[x.tau_ms for x in electrodes],
    )


def _parameter_columns(
    neurons: list[FittedNeuron],
    parameters: NeuronParameters,
    data: RecordingsDataModule,
    module: NeuronFittingModule,
) -> pd.DataFrame:
    best = module.best_distance.argmin(1, keepdim=True)
    return pd.DataFrame(neurons).rename(columns={"name": "cell"}).assign(
        **determined(parameters, data.scale_pa),
        scale_pa=data.scale_pa,
        distance=module.best_distance.gather(1, best)[:, 0].numpy(),
        chosen_epoch=module.best_epoch.gather(1, best)[:, 0].numpy() + 1,
    )  # fmt: skip


def _warn_of_refractory_period(neuron: FittedNeuron, trains: list[np.ndarray]) -> None:
    share = share_while_refractory(trains, neuron.arp_ms, neuron.dt_ms)
    if share > _WHILE_REFRACTORY:
        print(
            f"{neuron.name}: {share:.0%} of the recorded intervals are shorter than the absolute "
            f"refractory period, arp_ms, of {neuron.arp_ms:g} ms, in which the neuron cannot fire",
            file=sys.stderr,
        )


def _medians(table: pd.DataFrame, data: RecordingsDataModule, fit_s: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "n_cells": len(table), "n_failed": len(data.failed), "fit_s": fit_s,
        "fit_s_per_cell": fit_s / len(table),
    }  # fmt: skip
    for part in ("test", "train"):
        for name in (*(f"etv_{s:g}ms" for s in SIGMAS_MS), *_SUMMARISED):
            if f"{part}_{name}" not in table:
                continue
            values = table[f"{part}_{name}"].dropna().to_numpy()
            quartiles = np.percentile(values, (25, 50, 75)) if len(values) else [float("nan")] * 3
            for label, value in zip(("q25", "median", "q75"), quartiles, strict=True):
                row[f"{part}_{name}_{label}"] = float(value)
    return row


def _summary(row: dict[str, Any]) -> str:
    """Summarise a fit on one line."""
    values = {s: f"{row[f'test_etv_{s:g}ms_median']:.3f}" for s in SIGMAS_MS}
    error = row["test_etv_15ms_se_median"]
    if row["n_cells"] == 1 and error == error:  # not NaN
        values[15.0] += f" ± {error:.3f}"
    etv = ", ".join(f"{value} (σ {s:g} ms)" for s, value in values.items())
    cells = "1 cell" if row["n_cells"] == 1 else f"{row['n_cells']} cells"
    trial = row["test_reliability_etv_15ms_median"]
    baselines = f"a constant rate during the stimulus {row['test_null_etv_15ms_median']:.3f}"
    if trial == trial:  # not NaN: there are several recorded trials
        baselines += f", another trial of the neuron {trial:.3f}"
    kind = "normalised ETV" if trial == trial else "ETV"
    return (
        f"{cells} fitted in {row['fit_s']:.1f} s; on test, median {kind} {etv}, Γ ± 4 ms "
        f"{row['test_gamma_4ms_median']:.3f}; at σ 15 ms, {baselines}" + _not_constrained(row)
    )


def _not_constrained(row: dict[str, Any]) -> str:
    names = row.get("not_constrained")
    return f"; this stimulus does not constrain {names} (intervals in fits.csv)" if names else ""
