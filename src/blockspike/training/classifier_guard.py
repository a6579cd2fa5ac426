"""A guard that stops a classifier's training at a NaN or Inf, and warns of dead layers."""

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from blockspike.neurons import NotFiniteError, SpikeTrace
from blockspike.neurons.events import EventBatch
from blockspike.training.classification import Batch, ClassificationModule
from blockspike.training.guard import Guard, not_finite, require_finite, warn

SATURATED = 0.9
"""Share of the spikes that the refractory period allows, above which a layer is saturated."""


class ClassifierGuard(Guard):
    """Stops the training of a classifier at the first step with a NaN or Inf.

    Every training step checks data, scores, loss, gradients and parameters before the optimiser
    steps; on a GPU, the check waits for the device. The neurons check currents and membranes
    themselves, in validation and test too. Parameters and validation losses are checked before a
    checkpoint is written. Layers that are silent for an epoch, or fire all the time, cause a
    warning.
    """

    def __init__(self, file: Path):
        super().__init__(file)
        self._loss: Tensor | None = None
        self._state: dict[str, str] = {}

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss) -> None:
        """Remember the loss."""
        self._loss = loss.detach()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check a training step; raises NotFiniteError."""
        values = [self._loss, pl_module.scores, *pl_module.network.parameters()]
        values += [x.grad for x in pl_module.network.parameters() if x.grad is not None]
        if isinstance(self._batch[0], Tensor):
            values.append(self._batch[0])
        require_finite(values, pl_module.device)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the last step's parameters before a model is chosen; raises NotFiniteError."""
        require_finite(list(pl_module.network.parameters()), pl_module.device)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the losses that choose a model; raises NotFiniteError."""
        for name, value in trainer.callback_metrics.items():
            if name.startswith(("val/", "test_each_epoch/")) and not torch.isfinite(value):
                raise NotFiniteError(f"{name}: is {float(value)}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check parameters before a checkpoint; then warn of silent and saturated layers."""
        require_finite(list(pl_module.network.parameters()), pl_module.device)
        if trainer.is_global_zero:
            self._warn(trainer, pl_module)

    def _warn(self, trainer: pl.Trainer, module: ClassificationModule) -> None:
        n_steps = self._batch[0].shape[0]
        epoch = trainer.current_epoch + 1
        for i, layer in enumerate(module.network.layers):
            rate_hz = float(trainer.callback_metrics[f"train/rate_layer{i + 1}_hz"])
            most = math.ceil(n_steps / (getattr(layer, "arp", 0) + 1))  # spikes of one neuron
            share = rate_hz * n_steps * module.dt_ms / 1000 / most
            state, text = "", ""
            if rate_hz == 0:
                state = "dead"
                text = (
                    f"no neuron spiked in epoch {epoch} (dead layer); if that persists, raise "
                    "data.dt_ms or the membrane's time constant to add up more input, or lower "
                    "optimizer.lr"
                )
            elif share > SATURATED:
                state = "saturated"
                text = (
                    f"{share:.0%} of the spikes that the refractory period allows in epoch {epoch} "
                    "(saturated layer); if that persists, lower data.dt_ms or the membrane's time "
                    "constant to add up less input, or lower optimizer.lr"
                )
            if state and state != self._state.get(f"layers.{i}"):
                warn(f"layers.{i}: {text}")
            self._state[f"layers.{i}"] = state

    def _find(self, module: ClassificationModule, batch: Batch) -> str | None:
        network, (events, labels) = module.network, batch
        for name, value in network.named_parameters():
            if wrong := not_finite(value):
                layer, _, own = name.rpartition(".")
                return f"{layer}: {own} {wrong}"
        if isinstance(events, Tensor) and (wrong := not_finite(events)):
            return f"data: input {wrong}"
        with torch.enable_grad():
            traces: list[SpikeTrace] = []
            try:
                for trace in network.run_layers(events, membrane=True):
                    for part in ("spikes", "membrane", "threshold"):
                        if wrong := not_finite(getattr(trace, part)):
                            return f"layers.{len(traces)}: {part} {wrong}"
                    traces.append(trace)
            except NotFiniteError as error:
                return f"layers.{len(traces)}: {error}"
            output = network.read(traces)
            if wrong := not_finite(output.readout):
                return f"readout: membrane {wrong}"
            scores = output.mean_over_views(len(labels))
            if wrong := not_finite(scores):
                return f"readout: score {wrong}"
            loss = module.training_loss(scores, labels)
            if wrong := not_finite(loss):
                return f"loss: {wrong}"
            layers = [(f"layers.{i}", layer) for i, layer in enumerate(network.layers)]
            layers.append(("readout", network.readout))
            return _wrong_gradient(loss, layers, [*output.spikes, output.readout])

    def _seen(self, module: ClassificationModule) -> str | None:
        for name, value in reversed(list(module.network.named_parameters())):
            if value.grad is not None and (wrong := not_finite(value.grad)):
                layer, _, own = name.rpartition(".")
                return f"{layer}: gradient of {own} {wrong}, but not when run again"
        if self._loss is not None and (wrong := not_finite(self._loss)):
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
    """Name the first gradient that is not finite on the way back from the loss."""
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
        if gradient is not None and (wrong := not_finite(gradient)):
            return f"{words[i]} {wrong}"
    return None
