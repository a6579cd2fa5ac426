"""Simulation of any model by a loop over time, the reference for its kernels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.delays import RecurrentDelays, shifted
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.state import Start
from blockspike.neurons.surrogates import Surrogate, spike


def loop(
    model: NeuronModel,
    current: Tensor,
    parameters: tuple[Tensor, ...],
    constants: tuple[float, ...],
    recurrent_weight: Tensor | None,
    delay: int | RecurrentDelays,
    start: Start,
    surrogate: Surrogate,
    detach_reset: bool,
    detach_recurrence: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the model step by step; arguments as in `simulate`, already checked.

    Returns:
        Spikes [T, B, N], states after the last step [K, B, N], membrane and threshold [T, B, N].
    """
    n_states, rows = len(model.states), []
    values = start.values
    if values is None:
        values = current.new_zeros(len(model.all_states), *current.shape[1:])
    state = values.unbind()
    fed_back = FedBack(start.spikes, delay, detach_recurrence)

    def fire(membrane: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        s = spike(membrane - threshold, surrogate)
        return s, 1 - (s.detach() if detach_reset else s)

    for t, drive in enumerate(current.clone().unbind()):  # a step may write to it
        if recurrent_weight is not None and (arriving := fed_back.at(t)) is not None:
            drive = drive + F.linear(arriving, recurrent_weight)
        s, membrane, threshold, state = model.step(
            drive, parameters, (0.0, 1.0, *constants), state, fire
        )
        state = (*state[:n_states], *(x.detach() for x in state[n_states:]))
        fed_back.append(s)
        rows.append((s, membrane, torch.as_tensor(threshold).to(s).expand_as(s)))
    spikes, membrane, threshold = (torch.stack(x) for x in zip(*rows, strict=True))
    return spikes, torch.stack(state), membrane, threshold


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
