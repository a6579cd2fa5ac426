"""The Lightning module that trains a classifier, spiking or not."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from blockspike.data.loader import NO_LABEL
from blockspike.networks.classifier import SpikingClassifier, mean_over_views
from blockspike.networks.delays import Delays
from blockspike.networks.normalisation import BatchNorm
from blockspike.networks.pieces import run_in_pieces
from blockspike.neurons import NotFiniteError
from blockspike.neurons.events import EventBatch
from blockspike.training.guard import not_finite
from blockspike.training.hyperparameters import made, plain
from blockspike.training.parameter_groups import make_optimizer, make_scheduler, pattern_of
from blockspike.training.rate_penalty import RatePenalty

Batch = tuple[EventBatch | Tensor, Tensor]
_STAGES = ("train", "val", "test", "test_each_epoch")


class ClassificationModule(pl.LightningModule):
    """Trains by cross-entropy; logs loss, accuracy and the firing rate of each hidden layer.

    Lightning's tools work with it: `load_from_checkpoint`, `Tuner.lr_find`, `predict`, loggers.

    At the test it also logs each class's accuracy, and keeps the counts of true and predicted
    classes in `test_confusion`, int64 [n_classes, n_classes].

    Processes that share a batch get the gradient and the logs that one process would have, except
    that each draws its own dropout and normalises by the statistics of its own share.

    Args:
        network: a `SpikingClassifier`, or any module that returns scores [B, n_classes].
        n_classes: number of classes, for the accuracy.
        dt_ms: length of a step, for firing rates in Hz.
        optimizer: makes the optimiser from the parameters; see `make_optimizer`.
        scheduler: makes a learning-rate scheduler, see `make_scheduler`; None = constant rate.
        lr: learning rate; None = that of `optimizer`. `Tuner.lr_find` sets it.
        label_smoothing: share of each training target that is spread evenly over the classes;
            logged losses are plain cross-entropies.
        membrane_penalty: factor of the membrane's mean square, averaged over the hidden layers,
            that is added to the training loss.
        recompute_steps: length of the pieces that are simulated again in backward, see
            `run_in_pieces`; None = in one piece.
        truncate_steps: the same, with gradients that stop where pieces meet.
        rate_penalty: penalty on the hidden layers' firing rates, added to the training loss.
        lr_factors: factors of the learning rate by patterns of the parameters' names, such as
            {"beta": 0.1, "layers.0.*": 0.5}; see `pattern_of`. Schedulers keep the ratios.
        seed: seed of the dropout, together with epoch and process.

    Raises:
        ValueError: recompute_steps and truncate_steps are both given, or a pattern matches no
            trained parameter.

    Examples:
        >>> from functools import partial
        >>> import torch
        >>> import blockspike as bs
        >>> network = bs.SpikingClassifier(700, 20, n_hidden=64, dt_ms=2.0)
        >>> adam = partial(torch.optim.Adam, lr=1e-3)
        >>> module = bs.ClassificationModule(network, n_classes=20, dt_ms=2.0, optimizer=adam)
        >>> type(module.configure_optimizers()).__name__
        'Adam'
    """

    def __init__(
        self,
        network: nn.Module,
        n_classes: int,
        dt_ms: float,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        lr: float | None = None,
        label_smoothing: float = 0.0,
        membrane_penalty: float = 0.0,
        recompute_steps: int | None = None,
        truncate_steps: int | None = None,
        rate_penalty: RatePenalty | None = None,
        lr_factors: Mapping[str, float] | None = None,
        seed: int = 0,
    ):
        given = {k: x for k, x in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        # Checkpoint and loggers get plain values, which load_from_checkpoint passes to us.
        self.save_hyperparameters({name: plain(x) for name, x in given.items()})
        network, optimizer, scheduler, rate_penalty = (
            made(given[name], name) if isinstance(given[name], Mapping) else given[name]
            for name in ("network", "optimizer", "scheduler", "rate_penalty")
        )
        if recompute_steps is not None and truncate_steps is not None:
            raise ValueError(
                "recompute_steps, truncate_steps: expected one of them, "
                f"got {recompute_steps} and {truncate_steps}"
            )
        self.network: Any = network() if isinstance(network, partial) else network
        self.make_optimizer, self.make_scheduler, self.lr = optimizer, scheduler, lr
        self.label_smoothing, self.membrane_penalty = label_smoothing, membrane_penalty
        self.recompute_steps, self.truncate_steps = recompute_steps, truncate_steps
        self.rate_penalty, self.seed, self.dt_ms = rate_penalty, seed, dt_ms
        self.lr_factors = dict(lr_factors or {})
        pattern_of(self._trained(), self.lr_factors)
        self.confusion = MulticlassConfusionMatrix(n_classes, ignore_index=NO_LABEL)
        self.test_confusion = torch.zeros(n_classes, n_classes, dtype=torch.long)
        self.accuracy = nn.ModuleDict(
            {  # "train" itself is the name of a method of modules
                f"{stage}_": MulticlassAccuracy(n_classes, average="micro", ignore_index=NO_LABEL)
                for stage in _STAGES
            }
        )

    def forward(self, x: EventBatch | Tensor) -> Any:
        """The network's output for its input, spikes [T, B, n_inputs] of a `SpikingClassifier`."""
        return self.network(x)

    def _step(self, stage: str, batch: Batch) -> Tensor:
        """Run and log a batch; return its loss, weighted by this process's share of the batch."""
        x, labels = batch
        n = len(labels)
        is_ours = isinstance(self.network, SpikingClassifier) and not self.network.batch_first
        if is_ours and isinstance(x, Tensor) and n == x.shape[0] != x.shape[1]:
            raise ValueError(
                "batch: expected spikes [T, B, n_inputs], time first, and labels [B], got "
                f"{list(x.shape)} and {list(labels.shape)}"
            )
        output, batch_size, weight = _run_together(self._run, x, labels)
        scores = scores_of(output, n)
        self.scores = scores.detach()  # for the guard
        loss = weight * F.cross_entropy(scores, _counted(labels))
        values: dict[str, Any] = {"loss": loss, "accuracy": self.accuracy[f"{stage}_"]}
        values |= {
            f"rate_layer{i}_hz": weight * rate.detach() * 1000 / self.dt_ms
            for i, rate in enumerate(getattr(output, "rates", ()), start=1)
        }
        self._log(stage, values, labels, batch_size)  # pyright: ignore[reportCallIssue]
        if stage != "train":
            return loss
        if self.label_smoothing:
            loss = weight * self.training_loss(scores, labels)
        if self.membrane_penalty:
            loss = loss + weight * self.membrane_penalty * output.membrane_power.mean()
        if self.rate_penalty is not None:
            rates_hz = [rates * 1000 / self.dt_ms for rates in output.rates_by_neuron]
            loss = loss + weight * self.rate_penalty(rates_hz)
        return loss

    @torch.compiler.disable  # metrics count in Python; Lightning looks at signatures
    def _log(self, stage: str, values: dict[str, Any], labels: Tensor, batch_size: int) -> None:
        values["accuracy"](self.scores, labels)
        if stage == "test":
            self.confusion.update(self.scores, labels)
        self.log_dict(
            {f"{stage}/{name}": value for name, value in values.items()},
            on_step=False, on_epoch=True, batch_size=batch_size, add_dataloader_idx=False,
            sync_dist=True,
        )  # fmt: skip

    def _run(self, x: EventBatch | Tensor) -> Any:
        n_steps, options = self.recompute_steps or self.truncate_steps, {}
        if self.membrane_penalty:
            options["membrane"] = True
        if n_steps is None:
            return self.network(x, **options)
        truncate, by_neuron = self.truncate_steps is not None, self.rate_penalty is not None
        return run_in_pieces(self.network, x, n_steps, truncate, by_neuron, **options)

    def training_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with label smoothing, for scores [B, n_classes] and labels [B]."""
        return F.cross_entropy(scores, _counted(labels), label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def first_not_finite(self, batch: Batch) -> str | None:
        """Run a batch again and name the first layer that is not finite; for the guard."""
        x, labels = batch
        traces: list[Any] = []
        if isinstance(self.network, SpikingClassifier):
            try:
                for trace in self.network.run_layers(x):
                    if wrong := not_finite(trace.spikes):
                        return f"layers.{len(traces)}: spikes {wrong}"
                    traces.append(trace)
            except NotFiniteError as error:
                return f"layers.{len(traces)}: {error}"
        output = self.network.read(traces) if traces else self.network(x)
        wrong = not_finite(scores_of(output, len(labels)))
        return wrong and f"readout: score {wrong}"

    def on_train_epoch_start(self) -> None:
        """Sharpen delays and seed the epoch's draws, so that a resumed run draws the same.

        Layers whose parameters are all frozen normalise by their running statistics.
        """
        for module in self.network.modules():
            if isinstance(module, Delays):
                module.anneal_(self._progress())
        for norm in self._frozen_norms():
            norm.eval()
        draw = np.random.SeedSequence([self.seed, self.current_epoch, self.global_rank])
        torch.manual_seed(int(draw.generate_state(1)[0]))

    def _frozen_norms(self) -> Iterator[BatchNorm]:
        """Normalisations of the layers whose parameters all have a learning rate of 0."""
        trained = self._trained()
        patterns = pattern_of(trained, self.lr_factors)
        for name, norm in self.network.named_modules():
            if isinstance(norm, BatchNorm):
                layer = f"{name.rpartition('.')[0]}."
                own = [patterns.get(x) for x in trained if x.startswith(layer)]
                if all(pattern and self.lr_factors[pattern] == 0 for pattern in own):
                    yield norm

    def _progress(self) -> float:
        """Share of the training completed, 0 to 1: of its epochs or, without a limit, its steps."""
        n_epochs, n_steps = self.trainer.max_epochs or 0, self.trainer.max_steps or 0
        if n_epochs > 0:
            return self.current_epoch / n_epochs
        if n_steps > 0:
            return self.global_step / n_steps
        raise ValueError(
            "max_epochs: expected a number, over which learned delays sharpen, got none"
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one training batch; its gradients, accumulated over batches, are their mean.

        Lightning divides them by the number of batches a step, also at the end of an epoch, where
        fewer may be left.
        """
        loss = self._step("train", batch)
        n = self.trainer.accumulate_grad_batches
        n_here = min(n, self.trainer.num_training_batches - batch_idx // n * n)
        return loss if n_here == n else loss * (n / n_here)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Metrics of a validation batch; a second loader is the test set, named as such."""
        self._step("val" if dataloader_idx == 0 else "test_each_epoch", batch)

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Scores [B, n_classes] of a batch, with labels or without."""
        x, n = (batch[0], len(batch[1])) if isinstance(batch, tuple | list) else (batch, None)
        return scores_of(self.network(x), n)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Metrics of a test batch."""
        self._step("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log each class's accuracy; keep the confusion matrix [true, predicted]."""
        counts = self.confusion.compute()
        n_tested = counts.sum(1)
        of_classes = counts.diagonal() / n_tested
        self.test_confusion = counts.cpu()
        self.confusion.reset()
        for k in n_tested.nonzero().flatten().tolist():
            self.log(f"test/accuracy_class{k}", of_classes[k].float(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Make the optimiser of the trainable parameters, and the scheduler if there is one."""
        make: Any = self.make_optimizer
        if self.lr is not None:
            make = partial(make, lr=self.lr)
        optimizer = make_optimizer(make, self._trained(), self.lr_factors)
        if self.make_scheduler is None:
            return optimizer
        scheduler = make_scheduler(
            self.make_scheduler, optimizer, lambda: self.trainer.estimated_stepping_batches
        )
        # the monitor is for schedulers that wait for a plateau
        return {"optimizer": optimizer, "lr_scheduler": scheduler | {"monitor": "val/loss"}}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}


def scores_of(output: Any, n_samples: int | None) -> Tensor:
    """Scores [n_samples, n_classes] from a network's output, averaged over views of a sample."""
    scores = output if isinstance(output, Tensor) else output.scores
    return mean_over_views(scores, n_samples or len(scores))


def _run_together(
    network: Callable[[EventBatch | Tensor], Any], x: EventBatch | Tensor, labels: Tensor
) -> tuple[Any, int, float]:
    """Run the network in every process that shares the batch.

    Returns:
        This process's output, the number of samples in all processes, and the weight of this
        process's means. Gradients and logs are averaged over processes, whose shares of the batch
        may be unequal; the weight turns that into an average over samples.

    Raises:
        NotFiniteError: in every process, if one of them met a NaN or Inf.
    """
    output = failed = None
    try:
        output = network(x)
    except NotFiniteError as error:
        failed = error
    counted = (labels != NO_LABEL).sum()
    if not (dist.is_available() and dist.is_initialized()):
        if failed is not None:
            raise failed
        return output, int(counted), float(counted > 0)
    of_all = torch.stack([counted, torch.full_like(counted, failed is not None)])
    dist.all_reduce(of_all)
    n_samples, n_failed = of_all.tolist()
    if n_failed:
        raise failed or NotFiniteError("another process of this run met a NaN or Inf")
    return output, n_samples, dist.get_world_size() * int(counted) / max(n_samples, 1)


def _counted(labels: Tensor) -> Tensor:
    """Labels for a loss, which ignores `NO_LABEL`, unless there is no other.

    Then the loss has the weight 0 and is in no mean. Our loader makes such a batch for a process
    without a share.
    """
    return torch.where((labels != NO_LABEL).any(), labels, 0)
