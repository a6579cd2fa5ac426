"""Simulation of any model by a loop over time, the reference for its kernels."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.recurrent_delays import RecurrentDelays, shifted
from blockspike.neurons.spec import SimulationSpec
from blockspike.neurons.state import Start, last_state
from blockspike.neurons.surrogate import spike
from blockspike.neurons.trace import SpikeTrace, check_finite, ones_like_margin


def loop(
    spec: SimulationSpec,
    current: Tensor,
    parameters: Sequence[Tensor],
    recurrent_weight: Tensor | None,
    start: Start | None = None,
    membrane_gradient: bool = False,
    compute_threshold: Callable[[Tensor, Tensor], Tensor] | None = None,
    given: Tensor | None = None,
) -> SpikeTrace:
    """Run the model step by step; arguments as in `fused_cpu` and `trace_of`, already checked.

    Without `compute_threshold`, the membrane is read from the step without its
    `threshold_parameters`, and the threshold is that membrane less the margin. `given` spikes
    [T, B, N] take the place of its own, which rounding may make others.
    """
    model, constants, delay, surrogate, detach_reset, detach_recurrence = spec
    names = (*model.states, *model.counters)
    if start is None:
        start = Start(current.new_zeros(len(names), *current.shape[1:]), None)
    spikes: list[Tensor] = []
    margins: list[Tensor] = []
    above_1: list[Tensor] = []
    without_threshold = [
        torch.zeros_like(x) if name in model.threshold_parameters else x
        for name, x in zip(model.parameters, parameters, strict=True)
    ]
    state, n_states = start.values.unbind(), len(model.states)
    fed_back = FedBack(start.spikes, delay, detach_recurrence)
    numbers = (0.0, 1.0, *constants)
    by_step = compute_threshold is None and bool(model.threshold_parameters)

    def fire(margin: Tensor) -> tuple[Tensor, Tensor]:
        s = spike(margin, surrogate) if given is None else given[len(spikes)]
        return s, 1 - (s.detach() if detach_reset else s)

    for t, drive in enumerate(current.unbind()):
        if recurrent_weight is not None and (arriving := fed_back.at(t)) is not None:
            drive = drive + F.linear(arriving, recurrent_weight)
        before = state
        s, margin, state = model.step(drive, parameters, numbers, before, fire)
        if membrane_gradient or by_step:  # V alone: 1 is what is left of the threshold
            above_1.append(model.step(drive, without_threshold, numbers, before, fire)[1])
        state = (*state[:n_states], *(x.detach() for x in state[n_states:]))
        spikes.append(s)
        fed_back.append(s)
        margins.append(margin.detach())

    of_all, last, recurrent = torch.stack(spikes), torch.stack(state), recurrent_weight is not None
    check_finite(last[:n_states], current, model.states)

    def membrane_and_threshold() -> tuple[Tensor, Tensor]:
        margin = torch.stack(margins)
        if by_step:
            alone = torch.stack(above_1).detach() + 1
            return alone, alone - margin
        threshold = (compute_threshold or ones_like_margin)(of_all.detach(), margin)
        return margin + threshold, threshold

    last_ = partial(last_state, spec, recurrent, last, of_all, start.spikes)
    membrane = torch.stack(above_1) + 1 if membrane_gradient else None
    return SpikeTrace(of_all, membrane_and_threshold, None, last_, membrane)


class FedBack:
    """Spikes [B, N] of each step, for synapses that deliver them `delay` steps later.

    Args:
        before: spikes [D, B, N] of the D = `delay` steps before the first; None: there were none.
        delay: in steps; or a delay of each neuron's spikes, D the longest.
        detach: whether gradient stops at the spikes.
    """

    def __init__(self, before: Tensor | None, delay: int | RecurrentDelays, detach: bool):
        self.before = before.detach() if detach and before is not None else before
        self.delay, self.detach = delay, detach
        self.spikes: list[Tensor] = []

    def append(self, spikes: Tensor) -> None:
        """Keep the spikes of the next step."""
        self.spikes.append(spikes.detach() if self.detach else spikes)

    def at(self, t: int) -> Tensor | None:
        """Spikes that arrive at step t."""
        if isinstance(self.delay, RecurrentDelays):
            return self._at_own_delays(t, self.delay)
        if t >= self.delay:
            return self.spikes[t - self.delay]
        return None if self.before is None else self.before[t]

    def _at_own_delays(self, t: int, delays: RecurrentDelays) -> Tensor | None:
        """Spikes that arrive at step t, those of each neuron after its own delay."""
        if t == 0 and self.before is None:
            return None
        window = torch.stack([self._of_step(k) for k in range(t - delays.longest, t)])

        def after(delay: Tensor) -> Tensor:
            return shifted(window, delays.longest - delay, window[:1])[0]

        early, late = delays.ends
        change = (after(late) - after(early)).detach() / (late - early).clamp(min=1)
        return after(delays.whole) + (delays.steps - delays.steps.detach()) * change

    def _of_step(self, t: int) -> Tensor:
        """Spikes of step t, which is below 0 before the first."""
        if t >= 0:
            return self.spikes[t]
        return torch.zeros_like(self.spikes[0]) if self.before is None else self.before[t]
