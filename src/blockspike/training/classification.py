"""The Lightning module that trains a spiking classifier."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from blockspike.data.loader import NO_LABEL
from blockspike.networks.classifier import ClassifierOutput, SpikingClassifier
from blockspike.networks.delays import Delays
from blockspike.networks.normalisation import BatchNorm
from blockspike.networks.pieces import PiecewiseOutput, run_in_pieces
from blockspike.neurons import NotFiniteError
from blockspike.neurons.events import EventBatch
from blockspike.training.parameter_groups import (
    check_factors,
    make_optimizer,
    make_scheduler,
    pattern_of,
)
from blockspike.training.rate_penalty import RatePenalty

Batch = tuple[EventBatch, Tensor]
Output = ClassifierOutput | PiecewiseOutput


class ClassificationModule(pl.LightningModule):
    """Trains by cross-entropy; logs loss, accuracy and the firing rate of each hidden layer.

    At the test it also logs each class's accuracy, and keeps the counts of true and predicted
    classes in `test_confusion`, int64 [n_classes, n_classes].

    Processes that share a batch get the gradient and the logs that one process would have, except
    that each draws its own dropout and normalises by the statistics of its own share.

    Args:
        network: the classifier.
        n_classes: number of classes, for the accuracy.
        dt_ms: length of a step, for firing rates in Hz.
        optimizer: makes the optimiser from the parameters; see `make_optimizer`.
        scheduler: makes a learning-rate scheduler, see `make_scheduler`; None = constant rate.
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
        ValueError: label_smoothing is not in [0, 1), a number of steps is below 1 or no more than
            the network skips, both are given, membrane_penalty is negative, or a pattern matches no
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
        network: SpikingClassifier,
        n_classes: int,
        dt_ms: float,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        label_smoothing: float = 0.0,
        membrane_penalty: float = 0.0,
        recompute_steps: int | None = None,
        truncate_steps: int | None = None,
        rate_penalty: RatePenalty | None = None,
        lr_factors: Mapping[str, float] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected 0 ≤ x < 1, got {label_smoothing}")
        if not 0 <= membrane_penalty < math.inf:
            raise ValueError(f"membrane_penalty: expected a number ≥ 0, got {membrane_penalty}")
        for name, n in (("recompute_steps", recompute_steps), ("truncate_steps", truncate_steps)):
            if n is not None and n < 1:
                raise ValueError(f"{name}: expected an integer ≥ 1 or null, got {n}")
        if recompute_steps is not None and truncate_steps is not None:
            raise ValueError(
                "recompute_steps, truncate_steps: expected one of them, "
                f"got {recompute_steps} and {truncate_steps}"
            )
        self.label_smoothing = label_smoothing
        self.membrane_penalty = membrane_penalty
        self.recompute_steps = recompute_steps
        self.truncate_steps = truncate_steps
        if (recompute_steps or truncate_steps) and network.has_batch_norm:
            raise ValueError(
                "model.batch_norm: expected false with recompute_steps or truncate_steps, since "
                "each piece would have statistics of its own, got true"
            )
        if (recompute_steps or truncate_steps) and network.input_events is not None:
            raise ValueError(
                "network.input_events: expected null with recompute_steps or truncate_steps, since "
                f"the events of a whole sample are counted, got {network.input_events}"
            )
        of_piece = recompute_steps or truncate_steps
        if of_piece is not None and of_piece <= network.skip_steps:
            raise ValueError(
                "network.skip_steps: expected fewer steps than a piece of recompute_steps or "
                f"truncate_steps, {of_piece}, got {network.skip_steps}"
            )
        self.seed = seed
        self.network = network
        self.rate_penalty = rate_penalty
        self.lr_factors = check_factors(lr_factors)
        pattern_of(self._trained(), self.lr_factors)
        self.dt_ms = dt_ms
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.confusion = MulticlassConfusionMatrix(n_classes, ignore_index=NO_LABEL)
        self.test_confusion = torch.zeros(n_classes, n_classes, dtype=torch.long)
        self.accuracy = torch.nn.ModuleDict(
            {  # "train" itself is the name of a method of modules
                f"{stage}_": MulticlassAccuracy(n_classes, average="micro", ignore_index=NO_LABEL)
                for stage in _STAGES
            }
        )

    @classmethod
    def load_from_checkpoint(cls, *_: Any, **__: Any) -> NoReturn:
        """Refuse: a checkpoint has no configuration, which the run's folder has.

        Raises:
            NotImplementedError: always; it names `blockspike.load_run`.
        """
        raise NotImplementedError(
            "load_from_checkpoint: expected blockspike.load_run(FOLDER), since the configuration "
            "and the data of a network are in its run's folder, got a checkpoint"
        )

    def forward(self, x: EventBatch | Tensor) -> ClassifierOutput:
        """Scores and activity for spikes [T, B, n_inputs]."""
        return self.network(x)

    def _step(self, stage: str, batch: Batch) -> Tensor:
        """Run and log a batch; return its loss, weighted by this process's share of the batch."""
        events, labels = batch
        n = len(labels)
        if isinstance(events, Tensor) and n == events.shape[0] != events.shape[1]:
            raise ValueError(
                "batch: expected spikes [T, B, n_inputs], time first, and labels [B], got "
                f"{list(events.shape)} and {list(labels.shape)}"
            )
        output, batch_size, weight = _run_together(self._run, events, labels)
        scores = output.mean_over_views(len(labels))
        self.scores = scores.detach()  # for the search for NaN
        loss = weight * F.cross_entropy(scores, _counted(labels))
        values: dict[str, Any] = {"loss": loss, "accuracy": self.accuracy[f"{stage}_"]}
        values |= {
            f"rate_layer{i}_hz": weight * rate.detach() * 1000 / self.dt_ms
            for i, rate in enumerate(output.rates, start=1)
        }
        self._log(stage, values, labels, batch_size)  # pyright: ignore[reportCallIssue]
        if stage != "train":
            return loss
        if self.label_smoothing:
            loss = weight * self.training_loss(scores, labels)
        if output.membrane_power is not None:
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

    def _run(self, events: EventBatch | Tensor) -> Output:
        n_steps = self.recompute_steps or self.truncate_steps
        membrane = self.membrane_penalty > 0
        if n_steps is None:
            return self.network(events, membrane=membrane)
        truncate, by_neuron = self.truncate_steps is not None, self.rate_penalty is not None
        return run_in_pieces(self.network, events, n_steps, truncate, by_neuron, membrane)

    def training_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with label smoothing, for scores [B, n_classes] and labels [B]."""
        return F.cross_entropy(scores, _counted(labels), label_smoothing=self.label_smoothing)

    def on_train_epoch_start(self) -> None:
        """Sharpen delays and seed the epoch's draws, so that a resumed run draws the same.

        Layers whose parameters are all frozen normalise by their running statistics.
        """
        self.network.anneal_(self._progress())
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
        if any(isinstance(module, Delays) for module in self.network.modules()):
            raise ValueError(
                "max_epochs: expected a number, over which learned delays sharpen, got none"
            )
        return 0.0

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

    def on_test_epoch_start(self) -> None:
        """Start a confusion matrix."""
        self.confusion.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Metrics of a test batch."""
        self._step("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log each class's accuracy; keep the confusion matrix [true, predicted]."""
        counts = self.confusion.compute()
        n_tested = counts.sum(1)
        of_classes = counts.diagonal() / n_tested
        self.test_confusion = counts.cpu()
        for k in n_tested.nonzero().flatten().tolist():
            self.log(f"test/accuracy_class{k}", of_classes[k].float(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Make the optimiser of the trainable parameters, and the scheduler if there is one."""
        optimizer = make_optimizer(self.make_optimizer, self._trained(), self.lr_factors)
        if self.make_scheduler is None:
            return optimizer
        scheduler = make_scheduler(
            self.make_scheduler, optimizer, lambda: self.trainer.estimated_stepping_batches
        )
        # the monitor is for schedulers that wait for a plateau
        return {"optimizer": optimizer, "lr_scheduler": scheduler | {"monitor": "val/loss"}}

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move events and labels; on the CPU nothing is copied."""
        events, labels = batch
        return events.to(device, non_blocking=True), labels.to(device, non_blocking=True)


_STAGES = ("train", "val", "test", "test_each_epoch")


def _run_together(
    network: Callable[[EventBatch | Tensor], Output], events: EventBatch | Tensor, labels: Tensor
) -> tuple[Output, int, float]:
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
        output = network(events)
    except NotFiniteError as error:
        failed = error
    batch_size, weight = _global_batch_size_and_weight(labels, failed)
    assert output is not None
    return output, batch_size, weight


def _counted(labels: Tensor) -> Tensor:
    """Labels for a loss, which ignores `NO_LABEL`, unless there is no other.

    Then the loss has the weight 0 and is in no mean. Our loader makes such a batch for a process
    without a share.
    """
    return torch.where((labels != NO_LABEL).any(), labels, 0)


def _global_batch_size_and_weight(
    labels: Tensor, failed: NotFiniteError | None
) -> tuple[int, float]:
    """Number of labels in all processes and this one's weight; raises in all if one failed."""
    counted = (labels != NO_LABEL).sum()
    if not (dist.is_available() and dist.is_initialized()):
        if failed is not None:
            raise failed
        n_labels = int(counted)
        return n_labels, float(n_labels > 0)
    of_all = torch.stack([counted, torch.full_like(counted, failed is not None)])
    dist.all_reduce(of_all)
    n_samples, n_failed = of_all.tolist()
    if n_failed:
        raise failed or NotFiniteError("another process of this run met a NaN or Inf")
    return n_samples, dist.get_world_size() * int(counted) / max(n_samples, 1)
