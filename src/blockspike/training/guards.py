"""Stops a run whose numbers go wrong, says where, and keeps the batch to run it again.

The check of a step is one norm over loss, scores, gradients and parameters. Only when that is not
finite is the batch run again, layer by layer, to find the first place that is not.
"""

import math
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from blockspike.fitting.distance import Window
from blockspike.fitting.module import FittingBatch, NeuronFittingModule
from blockspike.neurons import NotFiniteError, SpikeTrace
from blockspike.neurons.events import EventBatch
from blockspike.training.checkpoint_io import load_plain, save_plain
from blockspike.training.classification import Batch, ClassificationModule

SATURATED = 0.9
"""Share of the spikes that its refractory period allows, above which a layer is saturated."""
_KIND = "bad batch"


class _Guard(Callback):
    """What both guards do once a number is not finite: find it, keep the batch, say so.

    `last.ckpt` and `best.ckpt` stay as they are, and the optimiser's step is not taken. Where
    several processes share the run all of them stop, and the first whose own batch is the cause
    writes it.

    Args:
        file: where the batch goes, with weights, optimiser and random numbers as they were.
    """

    def __init__(self, file: Path):
        self.file = file
        self._batch: Any = None
        self._place = ""
        self._epoch = 0
        self._random: dict[str, Tensor] = {}

    # ---- where the run is

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch, batch_idx) -> None:
        """Remember the batch."""
        step = f"step {trainer.global_step + 1}, batch {batch_idx + 1}"
        self._remember(trainer, batch, step)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Remember the batch."""
        of = "validation" if dataloader_idx == 0 else "test"
        self._remember(
            trainer, batch, f"{of} after step {trainer.global_step}, batch {batch_idx + 1}"
        )

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Remember the batch."""
        self._remember(trainer, batch, f"test, batch {batch_idx + 1}")

    def _remember(self, trainer: pl.Trainer, batch: Any, place: str) -> None:
        self._batch, self._epoch = batch, trainer.current_epoch
        self._place = f"epoch {trainer.current_epoch + 1}, {place}"
        self._random = {"cpu": torch.get_rng_state()}
        if trainer.strategy.root_device.type == "cuda":
            self._random["cuda"] = torch.cuda.get_rng_state(trainer.strategy.root_device)

    # ---- once something is wrong

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception) -> None:
        """Complete a NotFiniteError: what was not finite first, and where; write the batch."""
        if not isinstance(exception, NotFiniteError) or self._batch is None:
            return
        batch = self._plain(self._batch)
        with trainer.precision_plugin.forward_context(), _random_numbers(self._random):
            found = self._find(pl_module, self._unpacked(batch))
        process, found = _first_of_all(found)
        if found is None:  # in no process
            process, found = _first_of_all(self._seen(pl_module))
        text = f"{found or exception}; {self._place}"
        if process:
            text += f" of process {process}"
        kept = f"; this batch: {self.file}"
        if process == trainer.global_rank:
            content = {
                "kind": _KIND, "error": text, "place": self._place, "epoch": self._epoch,
                "training": pl_module.training, "process": process, "random": self._random,
                "batch": batch,
                "state_dict": pl_module.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            }  # fmt: skip
            try:
                save_plain(content, self.file)
            except OSError as error:
                kept = f"; this batch could not be written ({error})"
        if _is_shared():
            dist.barrier()  # the first process to end ends the others
        exception.args = (text + kept,)

    def replay(self, file: Path, module: pl.LightningModule, trainer: pl.Trainer) -> str:
        """Run a kept batch again, forward and backward, with what it was run with.

        Returns:
            What to say if nothing is wrong with it here.

        Raises:
            FileNotFoundError: no such file.
            NotFiniteError: what was not finite first, in the words of then.
            ValueError: the file holds something else, or the batch of another network.
        """
        kept = load_plain(file)
        if not isinstance(kept, dict) or kept.get("kind") != _KIND:
            raise ValueError(
                f"{file}: expected a batch that a stopped run kept, got something else"
            )
        try:
            module.load_state_dict(kept["state_dict"])
        except RuntimeError as error:
            raise ValueError(f"{file}: holds the batch of another network ({error})") from error
        device = trainer.strategy.root_device
        module.to(device).train(kept.get("training", True))
        module.trainer = trainer
        progress: Any = trainer.fit_loop.epoch_progress.current
        progress.processed = kept["epoch"]
        batch = module.transfer_batch_to_device(self._unpacked(kept["batch"]), device, 0)
        with trainer.precision_plugin.forward_context(), _random_numbers(kept["random"]):
            found = self._find(module, batch)
        if found:
            of = f" of process {kept['process']}" if kept["process"] else ""
            raise NotFiniteError(f"{found}; {kept['place']}{of}; this batch: {file}")
        return f"{file}: every number is finite here; it was: {kept['error']}"

    @abstractmethod
    def _find(self, module: Any, batch: Any) -> str | None:
        """What is not finite first when the batch is run, or None."""

    @abstractmethod
    def _seen(self, module: Any) -> str | None:
        """What was not finite, though it is when the batch is run again."""

    @abstractmethod
    def _plain(self, batch: Any) -> Any:
        """The batch as plain values and tensors of its own."""

    @abstractmethod
    def _unpacked(self, plain: Any) -> Any:
        """The batch that `_plain` was given."""


class NumberGuard(_Guard):
    """Stops the training of a classifier at the first step with a NaN or Inf.

    Looked at are data, scores, loss, gradients and parameters of every training step, before the
    optimiser's; currents and membranes by the neurons themselves, also in validation and test;
    parameters and validation losses before a checkpoint is written. On a GPU that waits for the
    device once a step. Warns of layers that fell silent for an epoch, or fire all the time.
    """

    def __init__(self, file: Path):
        super().__init__(file)
        self._loss: Tensor | None = None
        self._state: dict[str, str] = {}

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss) -> None:
        """Remember the loss."""
        self._loss = loss.detach()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The check of a step; raises NotFiniteError."""
        values = [self._loss, pl_module.scores, *pl_module.network.parameters()]
        values += [x.grad for x in pl_module.network.parameters() if x.grad is not None]
        if isinstance(self._batch[0], Tensor):
            values.append(self._batch[0])
        _require_finite(values, pl_module.device)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The last step's parameters, before a model is chosen; raises NotFiniteError."""
        _require_finite(list(pl_module.network.parameters()), pl_module.device)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The losses that choose a model; raises NotFiniteError."""
        for name, value in trainer.callback_metrics.items():
            if name.startswith(("val/", "test_each_epoch/")) and not torch.isfinite(value):
                raise NotFiniteError(f"{name}: is {float(value)}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Parameters, before a checkpoint; then silent and saturated layers."""
        _require_finite(list(pl_module.network.parameters()), pl_module.device)
        if trainer.is_global_zero:
            self._warn(trainer, pl_module)

    def _warn(self, trainer: pl.Trainer, module: ClassificationModule) -> None:
        n_steps = self._batch[0].shape[0]
        epoch = trainer.current_epoch + 1
        for i, layer in enumerate(module.network.layers):
            rate_hz = float(trainer.callback_metrics[f"train/rate_layer{i + 1}_hz"])
            most = math.ceil(n_steps / (getattr(layer, "arp", 0) + 1))  # spikes of a neuron
            share = rate_hz * n_steps * module.dt_ms / 1000 / most
            state, text = "", ""
            if rate_hz == 0:
                state = "dead"
                text = (
                    f"no neuron spiked in epoch {epoch} (dead layer); if it stays so, larger "
                    "tau_membrane_ms or data.dt_ms add up more input, a smaller optimizer.lr takes "
                    "smaller steps"
                )
            elif share > SATURATED:
                state = "saturated"
                text = (
                    f"{share:.0%} of the spikes that the refractory period allows in epoch {epoch} "
                    "(saturated layer); if it stays so, smaller tau_membrane_ms or data.dt_ms add "
                    "up less input, a smaller optimizer.lr takes smaller steps"
                )
            if state and state != self._state.get(f"layers.{i}"):
                print(f"warning: layers.{i}: {text}", file=sys.stderr)
            self._state[f"layers.{i}"] = state

    def _find(self, module: ClassificationModule, batch: Batch) -> str | None:
        network, (events, labels) = module.network, batch
        for name, value in network.named_parameters():
            if wrong := _not_finite(value):
                layer, _, own = name.rpartition(".")
                return f"{layer}: {own} {wrong}"
        if isinstance(events, Tensor) and (wrong := _not_finite(events)):
            return f"data: input {wrong}"
        with torch.enable_grad():
            traces: list[SpikeTrace] = []
            try:
                for trace in network.run_layers(events):
                    for part in ("spikes", "membrane", "threshold"):
                        if wrong := _not_finite(getattr(trace, part)):
                            return f"layers.{len(traces)}: {part} {wrong}"
                    traces.append(trace)
            except NotFiniteError as error:
                return f"layers.{len(traces)}: {error}"
            output = network.read(traces)
            if wrong := _not_finite(output.readout):
                return f"readout: membrane {wrong}"
            scores = output.mean_over_views(len(labels))
            if wrong := _not_finite(scores):
                return f"readout: score {wrong}"
            loss = module.training_loss(scores, labels)
            if wrong := _not_finite(loss):
                return f"loss: {wrong}"
            layers = [(f"layers.{i}", layer) for i, layer in enumerate(network.layers)]
            layers.append(("readout", network.readout))
            return _wrong_gradient(loss, layers, [*output.spikes, output.readout])

    def _seen(self, module: ClassificationModule) -> str | None:
        for name, value in reversed(list(module.network.named_parameters())):
            if value.grad is not None and (wrong := _not_finite(value.grad)):
                layer, _, own = name.rpartition(".")
                return f"{layer}: gradient of {own} {wrong}, but not when run again"
        if self._loss is not None and (wrong := _not_finite(self._loss)):
            return f"loss: {wrong}, but not when run again"
        return None

    def _plain(self, batch: Batch) -> dict[str, Any]:
        events, labels = batch
        if isinstance(events, EventBatch):
            own = {"row_ptr": events.row_ptr.clone(), "unit": events.unit.clone()}
            scale = None if events.scale is None else events.scale.clone()
            own |= {"shape": events.shape, "scale": scale}
            return {"events": own, "labels": labels.clone()}
        return {"dense": events.clone(), "labels": labels.clone()}

    def _unpacked(self, plain: dict[str, Any]) -> Batch:
        events = EventBatch(**plain["events"]) if "events" in plain else plain["dense"]
        return events, plain["labels"]


def _wrong_gradient(
    loss: Tensor, layers: list[tuple[str, nn.Module]], outputs: list[Tensor]
) -> str | None:
    """The first gradient that is not finite on the way back from the loss."""
    words: list[str] = []
    values: list[Tensor] = []
    after = "loss"
    for (name, layer), output in zip(reversed(layers), reversed(outputs), strict=True):
        words.append(f"{after}: gradient of its input")
        values.append(output)
        for own, value in layer.named_parameters():
            words.append(f"{name}: gradient of {own}")
            values.append(value)
        after = name
    trained = [i for i, value in enumerate(values) if value.requires_grad]
    gradients = torch.autograd.grad(loss, [values[i] for i in trained], allow_unused=True)
    for i, gradient in zip(trained, gradients, strict=True):
        if gradient is not None and (wrong := _not_finite(gradient)):
            return f"{words[i]} {wrong}"
    return None


class FitGuard(_Guard):
    """Stops a fit whose data, or all starts of a cell, are not finite; names the cell.

    A start whose gradient or loss is not finite is left out (`NeuronFittingModule`), and warned
    of, once a cell.

    Args:
        file: where the batch goes.
        names: of the cells.
    """

    def __init__(self, file: Path, names: Sequence[str]):
        super().__init__(file)
        self.names = names
        self._warned: set[int] = set()
        self._n_left_out = 0

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Count and name the starts that are left out; raises NotFiniteError for a whole cell."""
        loss = pl_module.loss_of_starts  # [C, K]
        wrong = ~torch.isfinite(loss)
        lost = wrong.all(1).any()
        for value in pl_module.population.parameters():
            if value.grad is not None:
                wrong = wrong | ~torch.isfinite(value.grad).view_as(loss)
        n_wrong, n_lost = torch.stack([wrong.sum(), lost.long()]).tolist()  # a GPU is waited for
        if n_lost:
            raise NotFiniteError(self._lost_cell(loss) or "")
        self._n_left_out += n_wrong
        epoch = trainer.current_epoch + 1
        for cell in wrong.any(1).nonzero()[:, 0].tolist() if n_wrong else ():
            if cell not in self._warned:
                self._warned.add(cell)
                starts = ", ".join(str(k + 1) for k in wrong[cell].nonzero()[:5, 0].tolist())
                print(
                    f"warning: {self.names[cell]}: loss or gradient of {int(wrong[cell].sum())} "
                    f"of {wrong.shape[1]} starts is not finite in epoch {epoch} "
                    f"(start {starts}); left out of this step",
                    file=sys.stderr,
                )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Parameters, before a checkpoint; raises NotFiniteError."""
        _require_finite(list(pl_module.population.parameters()), pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say how many were left out in all."""
        if self._n_left_out:
            print(
                f"warning: {self._n_left_out} times a start of {len(self._warned)} cells was left "
                "out of a step, its loss or gradient not being finite",
                file=sys.stderr,
            )

    def _find(self, module: NeuronFittingModule, batch: FittingBatch) -> str | None:
        n_starts = module.population.n_starts
        if wrong := self._wrong_data(batch):
            return wrong
        for name, value in module.population.named_parameters():
            for i in (~torch.isfinite(value)).nonzero()[:1, 0].tolist():
                return f"{self._start(i, n_starts)}: {name} is {value[i].item()}"
        with torch.no_grad():
            try:
                loss = module.losses(batch)[0].view(-1, n_starts)
            except NotFiniteError as error:
                if error.neuron is None:
                    return str(error)
                return f"{self._start(error.neuron, n_starts)}: {error}"
        return self._lost_cell(loss)

    def _seen(self, module: NeuronFittingModule) -> str | None:
        wrong = self._lost_cell(module.loss_of_starts)
        return wrong and f"{wrong}, but not when run again"

    def _wrong_data(self, batch: FittingBatch) -> str | None:
        for name, value in (("current", batch.current), ("target", batch.target)):
            bad = (~torch.isfinite(value)).nonzero()
            if len(bad):
                t, segment, cell = bad[0].tolist()
                return (
                    f"{self.names[cell]}: {name} is {value[t, segment, cell].item()} at step {t}, "
                    f"segment {segment} ({len(bad)} such values)"
                )
        return None

    def _lost_cell(self, loss: Tensor) -> str | None:
        for cell in (~torch.isfinite(loss)).all(1).nonzero()[:1, 0].tolist():
            return f"{self.names[cell]}: loss of all {loss.shape[1]} starts is not finite"
        return None

    def _start(self, i: int, n_starts: int) -> str:
        return f"{self.names[i // n_starts]}, start {i % n_starts + 1}"

    def _plain(self, batch: FittingBatch) -> dict[str, Any]:
        window = tuple(batch.window)
        return {"current": batch.current, "target": batch.target, "window": window}

    def _unpacked(self, plain: dict[str, Any]) -> FittingBatch:
        return FittingBatch(plain["current"], plain["target"], Window(*plain["window"]))


def _require_finite(values: list[Tensor], device: torch.device) -> None:
    """Raise NotFiniteError, in all processes of the run, if any has a value that is not finite."""
    # A sum of squares may overflow though all is finite; the largest magnitude is slower.
    wrong = (
        not get_total_norm(values).isfinite() and not get_total_norm(values, math.inf).isfinite()
    )
    if _is_shared():
        any_wrong = torch.tensor(int(wrong), device=device)
        dist.all_reduce(any_wrong)
        wrong = bool(any_wrong)
    if wrong:
        raise NotFiniteError("a number is NaN or Inf")


def _not_finite(value: Tensor) -> str | None:
    """Where and how often a tensor is not finite, or None."""
    bad = (~torch.isfinite(value.detach())).nonzero()
    if not len(bad):
        return None
    place = bad[0].tolist()
    where = f" at {place} ({len(bad)} of {value.numel()} values)" if place else ""
    return f"is {value[tuple(place)].item()}{where}"


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized()


def _first_of_all(found: str | None) -> tuple[int, str | None]:
    """The first process of the run that found something, and what."""
    texts = [found]
    if _is_shared():
        texts = [None] * dist.get_world_size()
        dist.all_gather_object(texts, found)
    process = next((i for i, text in enumerate(texts) if text is not None), 0)
    return process, texts[process]


@contextmanager
def _random_numbers(state: dict[str, Tensor]) -> Iterator[None]:
    """As they were, and afterwards as they are."""
    with torch.random.fork_rng(devices=None if "cuda" in state else []):
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        yield
