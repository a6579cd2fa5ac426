"""Fitting populations of neurons to recorded spike trains."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from blockspike.fitting.bfgs import BatchedBFGS
from blockspike.fitting.distance import Window
from blockspike.fitting.parameters import NeuronParameters
from blockspike.fitting.population import DrawnPopulation, NeuronPopulation
from blockspike.fitting.voltage import RecordedVoltage
from blockspike.neurons import NotFiniteError
from blockspike.training.guard import warn

FittingLoss = Literal["distance", "squared_distance", "likelihood"]


class FittingBatch(NamedTuple):
    """All data of a fit: every segment of every cell at once.

    Attributes:
        current: [T, B, C] scaled current of B segments of C cells.
        target: [T, B, C] recorded spikes, the counts of a trial or the mean of the trials.
        window: the steps that are fitted and those held out.
        trains: [T, R, B, C] recorded spikes of up to R trials, for the likelihood.
        is_there: [R, B, C], whether there is such a trial.
        voltage: recorded voltage, for fits with a `voltage_weight`.
    """

    current: Tensor
    target: Tensor
    window: Window
    trains: Tensor | None = None
    is_there: Tensor | None = None
    voltage: RecordedVoltage | None = None


class NeuronFittingModule(pl.LightningModule):
    """Fits all starts of all cells at once, by the van Rossum distance or by the likelihood.

    One epoch is one step.

    Each start follows its own gradient. With `resample_every`, the starts of a cell that are
    furthest from its recording are replaced by perturbed copies of the nearest ones: descent alone
    gets stuck, because the distance of a deterministic spike train is rough, and selection alone
    overfits.

    The result for a cell is the parameters, of any start and epoch, with the smallest distance over
    fitted and held-out steps together (epochs before τ reaches `tau_ms` do not count). With noise,
    which is drawn anew in each epoch, that smallest distance is partly luck.

    Args:
        population: the neurons.
        optimizer: makes the optimiser from the parameters.
        n_epochs: length of the schedules.
        tau_ms: time constant τ of the van Rossum distance.
        first_tau_ms: τ falls from here to `tau_ms` over the first half of the epochs.
        loss: "distance", as published, "squared_distance", or "likelihood": the negative
            log-likelihood of the recorded spikes, of neurons with escape noise, which is then the
            distance; τ has no part in it.
        prior_weight: weight of the prior of the parameters (see `DrawnPopulation.minus_log_prior`),
            of the likelihood; it is added to the distance, too. 1 = most probable parameters.
        voltage_weight: weight of the recorded voltage between spikes: what leaving all its variance
            unexplained costs, for each recorded spike. It is added to the distance, too. 0 = the
            spikes alone.
        resample_every: epochs between selections; None = starts stay independent.
        elite_fraction: share of a cell's starts that survive a selection.
        perturbation: (first, last) standard deviation of the copies' changes.
        gradient_clip: largest norm of a start's gradient; None = no limit.
        patience: epochs without a smaller loss after which a cell stops, counted from where τ has
            reached `tau_ms`; None = never.
        decay_lr: whether the learning rate falls, linearly to a tenth.
        seed: seed of the selections and of the trials' noise.
        names: of the cells, for warnings and errors.

    A start whose loss or gradient is not finite is left out of the step, with a warning.

    Raises:
        ValueError: a value outside its range, naming the argument.
        NotFiniteError: in training, a cell has no start left.
    """

    best_distance: Tensor
    best_epoch: Tensor
    stale: Tensor
    lowest: Tensor

    def __init__(
        self,
        population: NeuronPopulation,
        optimizer: Callable[[Any], Optimizer],
        n_epochs: int,
        *,
        tau_ms: float = 10.0,
        first_tau_ms: float | None = None,
        loss: FittingLoss = "distance",
        prior_weight: float = 0.0,
        voltage_weight: float = 0.0,
        resample_every: int | None = None,
        elite_fraction: float = 0.25,
        perturbation: tuple[float, float] = (0.3, 0.02),
        gradient_clip: float | None = None,
        patience: int | None = 5,
        decay_lr: bool = False,
        seed: int = 0,
        names: Sequence[str] | None = None,
    ):
        super().__init__()
        for name, value in (("tau_ms", tau_ms), ("first_tau_ms", first_tau_ms or tau_ms)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a time > 0 ms, got {value}")
        if not 0 < elite_fraction <= 1:
            raise ValueError(f"elite_fraction: expected a share in (0, 1], got {elite_fraction}")
        if not all(0 < x < math.inf for x in perturbation):
            raise ValueError(f"perturbation: expected two numbers > 0, got {perturbation}")
        for name, count in (("resample_every", resample_every), ("patience", patience)):
            if count is not None and count < 1:
                raise ValueError(f"{name}: expected an integer ≥ 1 or null, got {count}")
        if not 0 <= voltage_weight < math.inf or (voltage_weight and loss == "distance"):
            raise ValueError(
                "voltage_weight: expected a number ≥ 0, and 0 for loss=distance, got "
                f"{voltage_weight}"
            )
        if not 0 <= prior_weight < math.inf or (prior_weight and loss != "likelihood"):
            raise ValueError(
                "prior_weight: expected a number ≥ 0, and 0 unless loss=likelihood, got "
                f"{prior_weight}"
            )
        self.population = population
        self.make_optimizer = optimizer
        self.n_epochs, self.loss, self.voltage_weight = n_epochs, loss, voltage_weight
        self.prior_weight = prior_weight
        self.tau_ms, self.first_tau_ms = tau_ms, first_tau_ms or tau_ms
        self.resample_every, self.elite_fraction = resample_every, elite_fraction
        self.perturbation, self.gradient_clip = tuple(perturbation), gradient_clip
        self.patience, self.decay_lr, self.seed = patience, decay_lr, seed
        shape = (population.n_cells, population.n_starts)
        self.names = names or [f"cell {k + 1}" for k in range(population.n_cells)]
        self._left_out: Counter[str] = Counter()  # starts left out of steps, by cell
        self._names = [name for name, _ in population.named_parameters()]
        self.register_buffer("best_distance", torch.full(shape, math.inf))
        self.register_buffer("best_epoch", torch.full(shape, -1))
        self.register_buffer("stale", torch.zeros(shape[0], dtype=torch.int64))
        self.register_buffer("lowest", torch.full(shape[:1], math.inf))
        for name in self._names:
            self.register_buffer(f"best_{name}", population.get_parameter(name).detach().clone())

    def training_step(self, batch: FittingBatch, batch_idx: int) -> Tensor:
        """Return the sum of all starts' losses; keep the best parameters so far."""
        try:
            loss, fitted, held_out = self.losses(batch)
        except NotFiniteError as error:
            if error.neuron is not None:
                cell, start = divmod(error.neuron, self.population.n_starts)
                error.args = (f"{self.names[cell]}, start {start + 1}: {error}",)
            raise
        with torch.no_grad():
            self._keep_best((fitted + held_out).sum(0), loss)
            self._log(loss, held_out.sum(0) if batch.window.holds_out else None)
        self.loss_of_starts = loss.detach().view_as(self.best_distance)
        if isinstance(optimizer := self._optimizer(), BatchedBFGS):
            optimizer.losses = loss.detach()
        return loss.sum()

    def losses(self, batch: FittingBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Losses [N] of the starts; squared distances [B, N] over fitted and held-out steps.

        Of the likelihood, negative logarithms instead of distances. What the recorded voltage and
        the prior cost is added, if they have a weight.
        """
        by_likelihood = self.loss == "likelihood"
        of_spikes = self._losses_by_likelihood if by_likelihood else self._losses_by_distance
        loss, fitted, held_out = of_spikes(batch)
        if self.prior_weight:
            assert isinstance(self.population, DrawnPopulation)
            cost = self.prior_weight * self.population.minus_log_prior()
            loss, fitted = loss + cost, fitted + cost.detach() / len(fitted)
        if not self.voltage_weight:
            return loss, fitted, held_out
        of_fitted, of_held_out = self._losses_of_voltage(batch)
        return loss + of_fitted.sum(0), fitted + of_fitted, held_out + of_held_out

    def _losses_by_distance(self, batch: FittingBatch) -> tuple[Tensor, Tensor, Tensor]:
        scale = self.population.dt_ms / self._tau_ms()
        n_steps, n_segments, _ = batch.current.shape
        draws = self.population.draw(n_steps, n_segments, self._epoch_seed())
        squares = self.population.distance(
            batch.current, batch.target, math.exp(-scale), batch.window,
            None if draws is None else draws.to(batch.current),
        )  # fmt: skip
        fitted, held_out = (scale * x for x in squares)
        loss = fitted.sum(0)
        if self.loss == "distance":
            last = batch.window.of_segments(n_segments, self.population.n_cells)[1]
            n_there = (last > 0).sum(0).repeat_interleave(self.population.n_starts)
            loss = _safe_root(fitted).sum(0) / n_there.to(fitted)
        return loss, fitted, held_out

    def _losses_by_likelihood(self, batch: FittingBatch) -> tuple[Tensor, Tensor, Tensor]:
        assert batch.trains is not None and batch.is_there is not None
        fitted, held_out = self.population.log_likelihoods(
            batch.current, batch.trains, batch.is_there, batch.window
        )
        return -fitted.sum(0), -fitted.detach(), -held_out

    def _losses_of_voltage(self, batch: FittingBatch) -> tuple[Tensor, Tensor]:
        """Weighted squared errors [B, N] of the membrane over fitted and held-out steps."""
        assert batch.voltage is not None
        shares = self.population.unexplained_voltage(batch.current, batch.voltage, batch.window)
        if batch.trains is None:
            target = batch.target
        else:
            assert batch.is_there is not None
            target = (batch.trains * batch.is_there).sum(1)
        n_spikes, _ = batch.window.sums(target, self.population.n_cells)
        of_cell = self.voltage_weight * n_spikes.sum(0)
        fitted, held_out = (
            of_cell.repeat_interleave(self.population.n_starts) * share for share in shares
        )
        return fitted, held_out

    def _epoch_seed(self) -> int:
        """Seed of this epoch's draws, the same in a run that resumes here."""
        return self.seed * 1_000_003 + self.current_epoch

    def _tau_ms(self) -> float:
        if 2 * self.current_epoch >= self.n_epochs - 1:
            return self.tau_ms
        share = 2 * self.current_epoch / (self.n_epochs - 1)
        return self.first_tau_ms * (self.tau_ms / self.first_tau_ms) ** share

    def _keep_best(self, distance: Tensor, loss: Tensor) -> None:
        if self._tau_ms() != self.tau_ms:
            return  # losses of another τ do not compare
        distance = distance.view_as(self.best_distance)
        better = distance < self.best_distance
        self.best_distance = torch.where(better, distance, self.best_distance)
        self.best_epoch = torch.where(better, self.current_epoch, self.best_epoch)
        for name in self._names:
            now, kept = self.population.get_parameter(name), getattr(self, f"best_{name}")
            kept.copy_(torch.where(better.flatten(), now, kept))
        cell_loss = _ranked(loss.view_as(self.best_distance)).min(1).values
        self.stale = torch.where(cell_loss < self.lowest, 0, self.stale + 1)
        self.lowest = torch.minimum(cell_loss, self.lowest)

    def _log(self, loss: Tensor, held_out: Tensor | None) -> None:
        fitted = loss.view_as(self.best_distance)
        best = _ranked(fitted).argmin(1, keepdim=True)
        values = {"train/loss": fitted.gather(1, best).mean()}
        if held_out is not None:
            values["val/loss"] = held_out.view_as(fitted).gather(1, best).mean()
        if self.patience is not None:
            values["train/n_cells"] = self.active.float().sum()
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)

    @property
    def active(self) -> Tensor:
        """Whether each cell is still being fitted, [C]."""
        return self.stale < (math.inf if self.patience is None else self.patience)

    def configure_optimizers(self) -> Optimizer:
        """Make the optimiser of the trainable parameters.

        Raises:
            ValueError: BFGS with a loss that is not smooth, or with what it does itself.
        """
        own = {n: x for n, x in self.population.named_parameters() if x.requires_grad}
        optimizer = self.make_optimizer(list(own.values()))
        if isinstance(optimizer, BatchedBFGS):
            others = self.resample_every or self.gradient_clip or self.decay_lr
            if self.loss != "likelihood" or others:
                raise ValueError(
                    "optimizer: expected bfgs for fit=likelihood alone, which selects no starts "
                    "and neither clips gradients nor lowers the learning rate"
                )
            bounds = torch.tensor([self.population.bounds[n] for n in own])  # as in the parameters
            optimizer.bounds = bounds[:, 0], bounds[:, 1]
        return optimizer

    def on_train_epoch_start(self) -> None:
        """Set the learning rate and start the epoch's clock."""
        self._epoch_start = time.perf_counter()
        optimizer = self._optimizer()
        if self.decay_lr:
            share = self.current_epoch / max(self.n_epochs - 1, 1)
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * (1 - 0.9 * share)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's duration."""
        self.log("time/epoch_s", time.perf_counter() - self._epoch_start)

    def on_after_backward(self) -> None:
        """Name the starts left out of this step; raise NotFiniteError if a cell has no other."""
        gradients = [x.grad for x in self.population.parameters() if x.grad is not None]
        lost = ~self.loss_of_starts.isfinite()  # [C, K]
        wrong = torch.stack([lost, *(~x.isfinite().view_as(lost) for x in gradients)]).any(0)
        if not wrong.any():  # waits for a GPU
            return
        for name, of_cell, is_lost in zip(self.names, wrong, lost.all(1), strict=True):
            if is_lost:
                raise NotFiniteError(f"{name}: loss of all {len(of_cell)} starts is not finite")
            if of_cell.any() and not self._left_out[name]:
                starts = ", ".join(str(k + 1) for k in of_cell.nonzero()[:5, 0].tolist())
                warn(
                    f"{name}: loss or gradient of {int(of_cell.sum())} of {len(of_cell)} starts is "
                    f"not finite in epoch {self.current_epoch + 1} (start {starts}); left out of "
                    "this step"
                )
            self._left_out[name] += int(of_cell.sum())

    def on_train_end(self) -> None:
        """Warn of how often a start was left out."""
        if n := self._left_out.total():
            warn(
                f"a start was left out of a step {n} times, in {len(+self._left_out)} cells, "
                "because its loss or gradient was not finite"
            )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip each start's gradient; leave out what is not finite."""
        gradients = [x.grad for x in self.population.parameters() if x.grad is not None]
        for gradient in gradients:
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        if self.gradient_clip is not None:
            norm = torch.stack(gradients).norm(dim=0).clamp(min=1e-12)
            for gradient in gradients:
                gradient.mul_((self.gradient_clip / norm).clamp(max=1.0))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, select starts, restore stopped cells, clamp parameters to their ranges."""
        before = {n: self.population.get_parameter(n).detach().clone() for n in self._names}
        super().optimizer_step(*args, **kwargs)
        moving = self.active.repeat_interleave(self.population.n_starts)
        with torch.no_grad():
            if self.resample_every and (self.current_epoch + 1) % self.resample_every == 0:
                self._select()
            for name in self._names if not moving.all() else ():
                parameter = self.population.get_parameter(name)
                parameter.copy_(torch.where(moving, parameter, before[name]))
        self.population.project_()
        if not self.active.any():
            self.trainer.should_stop = True

    def _select(self) -> None:
        """Replace the worst starts of each cell by perturbed copies of its best ones."""
        device = self.loss_of_starts.device
        n_cells, n_starts = self.loss_of_starts.shape
        n_best = max(1, round(self.elite_fraction * n_starts))
        generator = torch.Generator().manual_seed(self._epoch_seed())
        order = _ranked(self.loss_of_starts).argsort(1)
        pick = torch.randint(n_best, (n_cells, n_starts - n_best), generator=generator).to(device)
        first = torch.arange(n_cells, device=device).unsqueeze(1) * n_starts
        source = (order.gather(1, pick) + first).flatten()
        target = (order[:, n_best:] + first).flatten()
        share = self.current_epoch / max(self.n_epochs - 1, 1)
        first_sd, last_sd = self.perturbation
        deviation = first_sd * (last_sd / first_sd) ** share
        state = self._optimizer().state
        for name, parameter in self.population.named_parameters():
            if not parameter.requires_grad and name not in self.population.searched:
                continue
            noise = deviation * torch.randn(len(target), generator=generator).to(device)
            parameter[target] = parameter[source] + noise
            for value in state.get(parameter, {}).values():
                if value.shape == parameter.shape:
                    value[target] = value[source]

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def transfer_batch_to_device(
        self, batch: FittingBatch, device: torch.device, dataloader_idx: int
    ) -> FittingBatch:
        """Move the arrays to the device; the window stays."""
        moved: dict[str, Any] = {
            k: x.to(device) for k, x in batch._asdict().items() if isinstance(x, Tensor)
        }
        if batch.voltage is not None:
            moved["voltage"] = RecordedVoltage(*(x.to(device) for x in batch.voltage))
        return batch._replace(**moved)

    def chosen_values(self) -> dict[str, Tensor]:
        """Each cell's best start as the population's own parameters, [C] each; see `chosen`."""
        _, index = self._chosen_start()
        return {name: getattr(self, f"best_{name}")[index] for name in self._names}

    @torch.no_grad()
    def chosen(self) -> tuple[NeuronParameters, Tensor]:
        """Parameters of each cell's best start, [C] each, and that start's index, [C].

        Raises:
            ValueError: no epoch has had the last τ, so none can be chosen.
        """
        start, index = self._chosen_start()
        now = {n: self.population.get_parameter(n).detach().clone() for n in self._names}
        for name in self._names:
            self.population.get_parameter(name).copy_(getattr(self, f"best_{name}"))
        physical = self.population.physical()
        for name in self._names:
            self.population.get_parameter(name).copy_(now[name])
        return physical[index], start

    def _chosen_start(self) -> tuple[Tensor, Tensor]:
        """Each cell's best start, and its place among those of all cells, [C] each."""
        if not bool((self.best_epoch >= 0).any(1).all()):
            raise ValueError(
                f"n_epochs: expected an epoch with τ at {self.tau_ms:g} ms, the second half of "
                f"{self.n_epochs}, got {self.current_epoch} epochs"
            )
        start = self.best_distance.argmin(1)
        first = torch.arange(len(start), device=start.device) * self.population.n_starts
        return start, start + first


def _safe_root(square: Tensor) -> Tensor:
    """Square root with gradient 0 at 0; NaN stays NaN."""
    apart = square != 0
    return torch.where(apart, torch.where(apart, square, 1).sqrt(), 0)


def _ranked(loss: Tensor) -> Tensor:
    """Losses with NaN as infinity, so that it ranks last."""
    return loss.nan_to_num(math.inf, math.inf)
