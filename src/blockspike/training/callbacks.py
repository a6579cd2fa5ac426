"""Callbacks: schedule, early stopping, timing, progress and what else is logged."""

import logging
import math
import time
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, early_stopping
from pytorch_lightning.utilities import rank_zero_only
from torch.nn.utils import get_total_norm

from blockspike.training.guard import warn

MONITORS = {"val/accuracy": "max", "val/loss": "min"}
"""Metrics that may choose a model → what is best, the largest or the smallest."""
SATURATED = 0.9
"""Share of the spikes that the refractory period allows, above which a layer is saturated."""
_LOG = logging.getLogger(__name__)  # what is printed is also in the run's log file


class ReloadBestAtMilestone(Callback):
    """The paper's schedule on SHD: one restart from the best model, with a lower learning rate.

    At the start of epoch `milestone`, the weights of the epoch with the lowest training loss are
    loaded, and the optimiser starts afresh with its learning rate multiplied by `factor`
    (docs/paper.md, Experiments).
    """

    def __init__(self, milestone: int = 15, factor: float = 0.1):
        self.milestone, self.factor = milestone, factor
        self.best_loss = float("inf")
        self.best_weights: dict[str, torch.Tensor] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """At the milestone, go back to the best weights with a fresh optimiser."""
        if trainer.current_epoch != self.milestone or not self.best_weights:
            return
        pl_module.load_state_dict(self.best_weights)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
            for group in optimizer.param_groups:
                group["lr"] *= self.factor

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the weights of the best epoch before the milestone."""
        loss = float(trainer.callback_metrics["train/loss"])
        if trainer.current_epoch < self.milestone and loss < self.best_loss:
            self.best_loss = loss
            self.best_weights = deepcopy(pl_module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs."""
        return {"best_loss": self.best_loss, "best_weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the interrupted run."""
        self.best_loss = state_dict["best_loss"]
        self.best_weights = state_dict["best_weights"]


def mode_of(monitor: str) -> str:
    """Whether a metric is better when it is lower, "min", or higher, "max"."""
    return "min" if monitor.endswith("loss") else "max"


class EarlyStopping(early_stopping.EarlyStopping):
    """Ends the training after some epochs in a row without a better metric.

    A run that is interrupted after its last epoch does not train another when it resumes.

    Args:
        monitor: name of the metric.
        mode: see `mode_of`.
        patience: number of epochs.
        min_delta: changes that are not larger count as none.
    """

    def __init__(self, monitor: str, mode: str, patience: int = 10, min_delta: float = 0.0):
        super().__init__(monitor, min_delta, patience, mode=mode, check_finite=False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the checkpoint is of the epoch that exhausted the patience."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class LearningRates(Callback):
    """Logs each epoch's learning rate as `lr`, or as `lr/PATTERN` if rates differ by pattern."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the rates that the epoch starts with."""
        groups = trainer.optimizers[0].param_groups
        rates = {group.get("pattern", ""): group["lr"] for group in groups}
        for pattern, lr in rates.items():
            name = f"lr/{pattern}" if len(rates) > 1 else "lr"
            pl_module.log(name, lr, on_step=False, on_epoch=True, sync_dist=True)


class GradientNorm(Callback):
    """Logs the norm of the gradient before clipping, the mean of an epoch's steps.

    It costs one reduction of the gradient a step, which the device does not wait for.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log a step's norm as `train/grad_norm`."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        pl_module.log(
            "train/grad_norm", norm, on_step=False, on_epoch=True, batch_size=1, sync_dist=True
        )


class Throughput(Callback):
    """Logs the seconds of an epoch (forward, backward, total) and samples per second.

    Seconds are sums over the epoch's batches, without validation.
    """

    def _end(self, of: str, pl_module: pl.LightningModule) -> None:
        """Count the time since the last call as that of one part of an epoch."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        self._seconds[of] += now - self._last
        self._last = now

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._seconds: dict[str, float] = dict.fromkeys(("forward", "backward", "other"), 0.0)
        self._samples, self._last = 0, time.perf_counter()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Start timing the forward pass."""
        self._samples += len(batch[1])
        self._end("other", pl_module)

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        """Add the forward pass; start timing the backward pass."""
        self._end("forward", pl_module)

    def on_after_backward(self, trainer, pl_module) -> None:
        """Add the backward pass."""
        self._end("backward", pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start timing validation, which runs inside Lightning's training epoch."""
        self._end("other", pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the validation, whose time is not the epoch's."""
        self._last = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the sums."""
        self._end("other", pl_module)
        seconds = sum(self._seconds.values())
        pl_module.log_dict(
            {
                "time/forward_s": self._seconds["forward"],
                "time/backward_s": self._seconds["backward"],
                "time/epoch_s": seconds,
                "time/samples_per_s": self._samples * trainer.world_size / seconds,
            },
            sync_dist=True,
        )


class LayerStates(Callback):
    """Warns of layers that are silent for an epoch, or fire nearly all the time."""

    def __init__(self):
        self._state: dict[int, str] = {}

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Warn when a layer has changed to that state; its rate is the logged one."""
        for i, layer in enumerate(getattr(pl_module.network, "layers", ())):
            rate_hz = trainer.callback_metrics.get(f"train/rate_layer{i + 1}_hz", math.nan)
            share = float(rate_hz) * pl_module.dt_ms / 1000 * (getattr(layer, "arp", 0) + 1)
            state = "dead" if share == 0 else "saturated" if share > SATURATED else ""
            if state and state != self._state.get(i):
                fires, change = "no neuron spiked", "raise"
                if state == "saturated":
                    fires = f"{share:.0%} of the spikes that the refractory period allows"
                    change = "lower"
                warn(
                    f"layers.{i}: {fires} in epoch {trainer.current_epoch + 1} ({state} layer); if "
                    f"that persists, {change} data.dt_ms or the membrane's time constant, which "
                    "add up the input, or lower optimizer.lr"
                )
            self._state[i] = state


class EpochLines(Callback):
    """Prints a plain line every few epochs, for logs and pipes (a terminal gets a bar)."""

    def __init__(self, every: int = 1):
        self.every = every

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's metrics."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every and epoch != trainer.max_epochs:
            return
        metrics = trainer.callback_metrics
        shown = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "time/epoch_s")
        values = "  ".join(
            f"{name} {float(metrics[name]):.4g}" for name in shown if name in metrics
        )
        line = f"epoch {epoch}/{trainer.max_epochs}  {values}"
        print(line, flush=True)
        _LOG.info(line)
