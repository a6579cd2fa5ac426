"""Simulation of any model in one pass over time, forward and backward, with the state in registers.

Contract, equations and gradient are those of `cpu/fused.py`. [T, B, N] is T rows of B·N columns. A
Triton program of `gpu/kernels.py` takes a tile of columns through all steps; with recurrence, it
takes them through the shortest recurrent delay at a time, with one matrix product in between. Saved
for backward: the input of each step, the states every CHUNK steps and, with recurrence, the spikes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from blockspike.neurons.autograd import differentiable_once
from blockspike.neurons.gpu import kernels as kernels_gpu
from blockspike.neurons.gpu.graphs import Graphs, launching_on
from blockspike.neurons.gpu.kernels import in_triton
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.recurrent_delays import shifted
from blockspike.neurons.spec import SimulationSpec
from blockspike.neurons.state import Start
from blockspike.neurons.trace import Simulation, check_finite, needs_gradient

CHUNK = 8  # steps between saved states; 16 need too many registers
TILE = 32  # columns per program: one warp, since few columns have to occupy many processors
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}  # rounds like a PyTorch loop
_MOST_COLUMNS = 2**31 - 2**10  # a tile past the end still fits in int32
_graphs = Graphs()


class _Result(NamedTuple):
    """Spikes, optional margin and optional input (`drives`) of each step and column [T, B·N].

    `saved` [chunks, states, B·N] is empty if no backward is needed; `state` is the final state.
    """

    spikes: Tensor
    margin: Tensor
    drives: Tensor
    saved: Tensor
    state: Tensor


def sizes(model: NeuronModel, n_constants: int) -> dict[str, int]:
    """Numbers of parameters, constants and states, as the kernels take them."""
    n_states = len(model.states) + len(model.counters)
    return {
        "n_parameters": len(model.parameters),
        "n_constants": n_constants,
        "n_states": n_states,
    }


def threshold_bits(model: NeuronModel) -> int:
    """Bit k is set if parameter k is one of the threshold."""
    own = enumerate(model.parameters)
    return sum(1 << k for k, name in own if name in model.threshold_parameters)


def _launch(kernel: Any, n_columns: int, *args: Tensor | int, **options: Any) -> None:
    """Launch a kernel on all tiles of columns."""
    kernel[(triton.cdiv(n_columns, TILE),)](*args, tile=TILE, chunk=CHUNK, **options, **OPTIONS)


def _simulate(
    current: Tensor, parameters: Tensor, constants: Tensor, values: Tensor,
    weight: Tensor | None = None, before: Tensor | None = None, delays: Tensor | None = None, *,
    model: NeuronModel, delay: int, for_backward: bool, keep_margin: bool,
) -> _Result:  # fmt: skip
    """Simulate for current [T, B, N], parameters [P, N] and constants [C], 0 and 1 first.

    `values` [K, B·N] and `before` [D, B, N] are the states and spikes at the start. With `delays`
    [N] of the neurons, `delay` is the shortest and D the longest that is possible.
    """
    n_steps, _, n_neurons = current.shape
    rows = current.reshape(n_steps, -1)
    n_columns = rows.shape[1]
    counts = sizes(model, len(constants))
    spikes, nothing = torch.empty_like(rows), parameters.new_empty(0, 0)
    history = None
    if delays is not None and before is not None:
        history = torch.cat([before.flatten(1), torch.zeros_like(rows)])
        spikes = history[len(before) :]
        history = history.view(-1, *current.shape[1:])
    margin = parameters.new_empty(rows.shape) if keep_margin else nothing
    keep_drives = for_backward and weight is not None
    drives = parameters.new_empty(rows.shape) if keep_drives else rows if for_backward else nothing
    n_saved = -(-n_steps // CHUNK) if for_backward else 0
    saved = parameters.new_empty(n_saved, counts["n_states"], n_columns)
    state = values.clone()
    block = n_steps if weight is None else delay
    for first in range(0, n_steps, block):
        last = min(n_steps, first + block)
        if history is not None and delays is not None:  # at the steps of the block
            by = first + len(history) - n_steps - delays
            earlier = shifted(history, by, current[first:last])
        else:
            earlier = before if first == 0 else spikes[first - block : last - block]
        recurrent = None
        if weight is not None and earlier is not None:
            recurrent = earlier[:last].reshape(-1, n_neurons).to(weight.dtype) @ weight.T
        _launch(
            kernels_gpu.forward, n_columns, rows, rows if recurrent is None else recurrent,
            parameters, constants, state, spikes, margin, drives, saved, first, last, n_columns,
            n_neurons, step=in_triton(model.step), **counts,
            has_recurrent=recurrent is not None, keep_margin=keep_margin,
            keep_drives=keep_drives, keep_states=for_backward,
        )  # fmt: skip
    return _Result(spikes, margin, drives, saved, state)


def _differentiate(
    grad_spikes: Tensor, drives: Tensor, saved: Tensor, parameters: Tensor, constants: Tensor,
    slope_constants: Tensor, grad_state: Tensor, grad_membrane: Tensor,
    weight: Tensor | None = None, delays: Tensor | None = None, *, spec: SimulationSpec,
    delay: int, longest: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of current [T, B·N], states [K, B·N] and, in float64, parameters [P, B·N].

    If neurons have `delays` [N] of their own, `delay` is the shortest.

    `grad_state` and `grad_membrane`, which may be empty, come from the last states and the margin.
    Pass `weight` only if gradient flows through the recurrence.
    """
    model = spec.model
    n_steps, n_columns = drives.shape
    grad_current = torch.empty_like(grad_spikes)
    carried = grad_state.clone()
    sums = parameters.new_zeros(len(parameters), n_columns, dtype=torch.float64)
    block = n_steps if weight is None else delay
    fed = None
    if weight is not None and delays is not None:
        fed = weight.new_zeros(n_steps + longest, n_columns // len(weight), len(weight))
    for last in range(n_steps, 0, -block):
        first = max(0, last - block)
        feedback = None
        if weight is not None and last < n_steps:
            if delays is not None and fed is not None:
                feedback = shifted(fed, first + delays, fed[first:last])
            else:
                later = grad_current[first + block : last + block].view(-1, len(weight))
                feedback = later.to(weight.dtype) @ weight
        _launch(
            kernels_gpu.backward, n_columns, grad_spikes,
            grad_spikes if feedback is None else feedback, grad_membrane, drives, saved, parameters,
            constants, slope_constants, carried, grad_current, sums, first, last, n_columns,
            parameters.shape[1], step=in_triton(model.step),
            reverse_step=in_triton(model.reverse_step), **sizes(model, len(constants)),
            n_carried=len(model.states), has_feedback=feedback is not None,
            has_grad_membrane=grad_membrane.numel() > 0,
            threshold_bits=threshold_bits(model),
            reset_has_grad=0.0 if spec.detach_reset else 1.0,
            slope=in_triton(type(spec.surrogate).formula), n_slope_constants=len(slope_constants),
        )  # fmt: skip
        if weight is not None and fed is not None:
            own = grad_current[first:last].view(-1, *fed.shape[1:])
            fed[first:last] = own.to(weight.dtype) @ weight
    return grad_current, carried, sums


def _run(
    current: Tensor, parameters: Tensor, constants: Tensor, weight: Tensor | None,
    start: Start | None, spec: SimulationSpec, for_backward: bool, keep_margin: bool = False,
) -> _Result:  # fmt: skip
    model, delay, delays = spec.model, _delay(spec, len(current)), spec.delays
    values = parameters.new_zeros(len(model.states) + len(model.counters), *current.shape[1:])
    if start is not None:
        values = start.values
    given = [current, parameters, constants, values.flatten(1), weight]
    before = None if start is None else start.spikes
    if weight is not None and delays is not None:
        if before is None:
            before = current.new_zeros(delays.longest, *current.shape[1:])
        given += [before, delays.whole]
    elif weight is not None and before is not None:
        given.append(before[:delay])
    tensors = [x.detach().contiguous() for x in given if x is not None]
    asked: dict[str, Any] = {"for_backward": for_backward, "keep_margin": keep_margin}
    asked |= {"model": model, "delay": delay}
    with launching_on(current.device):
        if weight is None:
            result = _simulate(*tensors, **asked)
        else:
            result = _Result(*_graphs.run(_simulate, *tensors, **asked))
    last = result.state[: len(model.states)].view(-1, *current.shape[1:])
    check_finite(last, current, model.states)
    return result


def _delay(spec: SimulationSpec, n_steps: int) -> int:
    """Steps that are simulated at a time: the delay of the recurrence, or the shortest."""
    delays = spec.delays
    return min(spec.longest_delay if delays is None else delays.shortest, n_steps)


def _recurrent_weight_gradient(
    grad_current: Tensor, spikes: Tensor, delay: int, dtype: torch.dtype
) -> Tensor:
    """Gradient dLoss/dW[post, pre] = Σ gI[t, post] S[t − delay, pre] for gI and S [T, B, N]."""
    n = spikes.shape[2]
    later = grad_current[delay:].reshape(-1, n)
    earlier = spikes[: len(grad_current) - delay].reshape(-1, n)
    return later.to(dtype).T @ earlier.to(dtype)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, current, parameters, constants, weight, values, before, delay_steps,
        spec: SimulationSpec, keep_margin: bool,
    ):  # fmt: skip
        """Spikes [T, B, N], the last states [K, B, N], the margin [T, B, N] if it is wanted.

        `values` and `before` are a `Start`, or None; `delay_steps` those of `spec`.
        """
        start = None if values is None else Start(values, before)
        result = _run(current, parameters, constants, weight, start, spec, True, keep_margin)
        spikes = result.spikes.view(current.shape)
        spike_bytes = None if weight is None else spikes.to(torch.uint8)
        ctx.save_for_backward(
            result.drives, result.saved, parameters, constants, weight, spike_bytes, before
        )
        ctx.spec, ctx.shape, ctx.dtype = spec, current.shape, current.dtype
        ctx.set_materialize_grads(False)
        last = result.state.view(-1, *current.shape[1:])
        if keep_margin:
            return spikes, last, result.margin.view(current.shape)
        return spikes, last

    @staticmethod
    @differentiable_once("method='fused'", instead="method='standard'")
    def backward(ctx, *grads: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        drives, saved, parameters, constants, weight, spike_bytes, before = ctx.saved_tensors
        spec: SimulationSpec = ctx.spec
        delay, delays = _delay(spec, ctx.shape[0]), spec.delays
        asked: dict[str, Any] = {"spec": spec._replace(recurrent_delay=delay), "delay": delay}
        asked["longest"] = spec.longest_delay
        n_states, dtype = len(spec.model.states), parameters.dtype
        grad_spikes, grad_last, grad_membrane = (*grads, None)[:3]
        if grad_spikes is None:
            grad_spikes = torch.zeros(ctx.shape, dtype=ctx.dtype, device=drives.device)
        grad_state = parameters.new_zeros(n_states, drives.shape[1])
        if grad_last is not None:
            grad_state = grad_last[:n_states].flatten(1).contiguous()
        if grad_membrane is None:
            grad_membrane = parameters.new_empty(0)
        tensors = [grad_spikes.reshape(drives.shape).contiguous(), drives, saved]
        of_slope = _on_device(spec.surrogate.constants, parameters)
        tensors += [parameters.contiguous(), constants, of_slope, grad_state]
        tensors.append(grad_membrane.contiguous())
        grad_weight = grad_values = grad_before = grad_steps = None
        with launching_on(drives.device):
            if weight is None or spec.detach_recurrence:
                grad_current, carried, sums = _differentiate(*tensors, **asked)
            else:
                tensors += [weight.contiguous()] if delays is None else [weight, delays.whole]
                grad_current, carried, sums = _graphs.run(_differentiate, *tensors, **asked)
            grad_current = grad_current.view(ctx.shape)
            wanted = ctx.needs_input_grad[5] and not spec.detach_recurrence
            if weight is not None and delays is not None:
                arriving = partial(delays.arriving, spike_bytes.to(dtype), before)
                grad_weight, grad_steps = delays.gradients(grad_current, weight, arriving)
            elif weight is not None and ctx.needs_input_grad[3]:
                grad_weight = _recurrent_weight_gradient(grad_current, spike_bytes, delay, dtype)
                if before is not None:
                    grad_weight += _recurrent_weight_gradient(
                        grad_current[:delay], before, 0, dtype
                    )
            if ctx.needs_input_grad[4]:
                grad_values = parameters.new_zeros(saved.shape[1:])
                grad_values[:n_states] = carried
                grad_values = grad_values.view(-1, *ctx.shape[1:])
            if weight is not None and delays is not None and before is not None and wanted:
                grad_before = delays.gradient_of_before(grad_current, weight).to(before.dtype)
            elif weight is not None and before is not None and wanted:
                grad_before = torch.zeros_like(before)
                grad_before[:delay] = (grad_current[:delay].to(dtype) @ weight).to(before.dtype)
        per_neuron = sums.view(len(parameters), -1, ctx.shape[2]).sum(1).to(dtype)
        return (
            grad_current, per_neuron, None, grad_weight, grad_values, grad_before, grad_steps, None,
            None,
        )  # fmt: skip


def _on_device(constants: tuple[float, ...], like: Tensor) -> Tensor:
    """0, 1 and the constants, filled on the device, since a copy from the CPU would wait for it."""
    return torch.stack([like.new_full((), x) for x in (0.0, 1.0, *constants)])


def fused_gpu(
    spec: SimulationSpec,
    current: Tensor,
    parameters: Sequence[Tensor],
    recurrent_weight: Tensor | None,
    start: Start | None = None,
    membrane_gradient: bool = False,
) -> Simulation:
    """Simulate by Triton kernels, with the spikes and gradient of the loop; see `fused_cpu`.

    `current` may be bfloat16 with float32 parameters. Spikes and the current's gradient are then
    bfloat16, and everything in between is float32.

    Raises:
        ValueError: B·N exceeds the 32-bit column indices of the kernels, or the model has
            accumulators.
    """
    if spec.model.accumulators:
        raise ValueError(f"{spec.model.name}: expected a current on a CPU, got {current.device}")
    if current.shape[1] * current.shape[2] > _MOST_COLUMNS:
        raise ValueError(
            f"current: expected B·N ≤ {_MOST_COLUMNS} for 'fused' on a GPU, "
            f"got {current.shape[1]} · {current.shape[2]}"
        )
    together = torch.stack(list(parameters))
    numbers = _on_device(spec.constants, together)
    inputs = (current, together, numbers, recurrent_weight)
    values, before = start or (None, None)
    simulate = partial(_run, *inputs, start, spec)
    more = (values, before, spec.delay_steps)
    if needs_gradient(*inputs, *more):
        spikes, last, *margins = _Fused.apply(  # pyright: ignore
            *inputs, *more, spec, membrane_gradient
        )
        margin = next(iter(margins), None)
    else:
        result = simulate(for_backward=False)
        spikes, margin = result.spikes.view(current.shape), None
        last = result.state.view(-1, *current.shape[1:])
    compute_margin = partial(simulate, for_backward=False, keep_margin=True)
    watched = (current, recurrent_weight, *more, *parameters)
    return Simulation(
        spec, spikes, None, last, before, recurrent_weight is not None, margin,
        lambda: compute_margin().margin, watched,
    )  # fmt: skip
