"""Intervals of the parameters of a fit, by fitting again to resampled trials and segments."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

from blockspike.app.build import build_fit, build_trainer
from blockspike.app.trainer import EpochCheckpoint
from blockspike.data.parts import padded
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.fitting.bootstrap import intervals, resample, unconstrained
from blockspike.fitting.distance import Window
from blockspike.fitting.identified import identified
from blockspike.fitting.module import FittingBatch, NeuronFittingModule
from blockspike.fitting.parameters import NeuronParameters
from blockspike.fitting.population import DrawnPopulation
from blockspike.fitting.voltage import RecordedVoltage
from blockspike.runs.run import Run
from blockspike.training.callbacks import EpochLines

# A replicate has so many times fewer than the fit; second number of epochs: by the likelihood.
_SHARE_OF_STARTS, _SHARE_OF_EPOCHS = 8, (4, 2)
_LEAST_STARTS, _LEAST_EPOCHS = 8, 60
_DEVIATION = 0.3  # of a replicate's starts from the fit, most of which are logarithms
_EPOCHS_A_LINE = 20


def determined(parameters: NeuronParameters, scale_pa: np.ndarray) -> dict[str, np.ndarray]:
    """Time constant of the membrane and `identified`, [N] each.

    Args:
        parameters: of N neurons.
        scale_pa: pA of a unit of their current, [N].
    """
    per_pa = replace(parameters, gain=parameters.gain / torch.from_numpy(scale_pa))
    found = {"tau_membrane_ms": per_pa.tau_membrane_ms, **identified(per_pa)}
    return {name: x.numpy() for name, x in found.items()}


def fit_intervals(
    cfg: DictConfig,
    run: Run,
    data: RecordingsDataModule,
    module: NeuronFittingModule,
    voltage: RecordedVoltage | None,
) -> pd.DataFrame:
    """Fit to `cfg.n_bootstrap` replicates of each cell's data, all at once, from the fit on.

    An interrupted run continues with its replicates where it was.

    Returns:
        A row per cell: `<name>_low` and `<name>_high`, the 90 % interval of the time constant of
        the membrane and of each quantity of `identified`; `intervals_from`, what was resampled; and
        `not_constrained`, those of which this stimulus says little. No columns without replicates.
    """
    n, population = cfg.n_bootstrap, module.population
    n_cells = len(data.names)
    nothing = pd.DataFrame(index=range(n_cells))
    if n == 0:
        return nothing
    if not isinstance(population, DrawnPopulation):
        print(f"no intervals: expected neurons whose starts are drawn, got {population.neuron}")
        return nothing
    parameters, _ = module.chosen()
    drawn = resample(
        data.train, parameters, n, data.dt_ms, cfg.seed + 1, data.first_trial_only, voltage
    )
    if not any(drawn.how):
        needs = ", and five blocks of the voltage of 0.5 s" if voltage else ""
        print(
            "no intervals: expected several trials of each segment, five segments, or neurons with "
            f"noise{needs}"
        )
        return nothing
    again = build_fit(_of_replicates(cfg), n * n_cells, data.dt_ms)
    assert isinstance(again.population, DrawnPopulation)
    start = {name: x.repeat_interleave(n) for name, x in module.chosen_values().items()}
    again.population.start_around(start, _DEVIATION, cfg.seed + 1)
    window = Window(data.train.first[0][0], drawn.n_steps, drawn.n_steps)
    trains, is_there = padded(drawn.trains) if module.loss == "likelihood" else (None, None)
    batch = FittingBatch(drawn.current, drawn.target, window, trains, is_there, drawn.voltage)
    _fit(_of_replicates(cfg), run, again, batch)
    refitted, _ = again.chosen()
    fitted = determined(parameters, data.scale_pa)
    fitted = {name: x for name, x in fitted.items() if x.any()}  # without adaptation it is 0
    repeated = determined(refitted, data.scale_pa.repeat(n))
    found = intervals(fitted, {k: x.reshape(-1, n) for k, x in repeated.items()}, drawn.inflation)
    return pd.DataFrame(found).assign(
        intervals_from=drawn.how,
        not_constrained=["; ".join(unconstrained(fitted, found, i)) for i in range(n_cells)],
    )  # fmt: skip


def _of_replicates(cfg: DictConfig) -> DictConfig:
    """Configuration of the replicates: fewer starts and epochs, and τ fine from the beginning."""
    own = cfg.copy()
    own.population.n_starts = max(_LEAST_STARTS, cfg.population.n_starts // _SHARE_OF_STARTS)
    least = min(_LEAST_EPOCHS, cfg.trainer.max_epochs)
    share = _SHARE_OF_EPOCHS[cfg.fit.loss == "likelihood"]
    own.trainer.max_epochs = max(least, cfg.trainer.max_epochs // share)
    own.fit.first_tau_ms = None
    own.seed = cfg.seed + 1
    own.logger = own.callbacks = None
    return own


def _fit(cfg: DictConfig, run: Run, module: NeuronFittingModule, batch: FittingBatch) -> None:
    path = run.last_checkpoint.with_name("bootstrap.ckpt")
    checkpoint = EpochCheckpoint(path, every_n_epochs=_EPOCHS_A_LINE, save_on_train_epoch_end=True)
    callbacks: list[Callback] = [checkpoint]  # a replicate of which every start fails stays put
    if cfg.progress:
        print("intervals: fitting to resampled trials")
        callbacks.append(EpochLines(_EPOCHS_A_LINE))
    options = {"enable_progress_bar": False, "limit_val_batches": 0}
    trainer = build_trainer(cfg, run.folder, callbacks, **options)
    loader = DataLoader([batch], batch_size=None)  # pyright: ignore
    trainer.fit(module, loader, ckpt_path=path if path.is_file() else None)


def constrained_summary(table: pd.DataFrame) -> str:
    """List the parameters that the stimulus does not constrain in most cells; "" if none."""
    if "not_constrained" not in table:
        return ""
    lists = [x.split("; ") for x in table["not_constrained"] if x]
    counts = Counter(name for names in lists for name in names)
    return ", ".join(name for name, n in counts.items() if n > len(table) / 2)
