"""Operators of PyTorch, `torch.ops.blockspike.…`, and the one that simulates neurons by kernels.

An operator is what `torch.compile`, `torch.export` and `torch.func` see of a kernel: its name, the
shapes of its results, its derivative, and how it runs for a batch of inputs. A file written by
`torch.export.save` needs `import blockspike.networks` where it is loaded.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.derivative import Derived, derived, slope_text
from blockspike.neurons.errors import check_finite, check_values
from blockspike.neurons.model import NeuronModel, model_of
from blockspike.neurons.precision import is_autocast_on
from blockspike.neurons.surrogates import Surrogate, surrogate_of


def is_compiled(x: Tensor) -> bool:
    """Whether a compiler traces, so that x may have a shape and no values."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter)


def is_transformed() -> bool:
    """Whether a transform of `torch.func` runs."""
    return torch._C._are_functorch_transforms_active()


def is_traced(*tensors: Tensor) -> bool:
    """Whether values cannot be looked at."""
    return is_transformed() or any(map(is_compiled, tensors))


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run with autocast off; the first argument is a tensor."""

    @wraps(function)
    def run(*args: Any) -> Any:
        device = args[0].device.type
        if not is_autocast_on(device):
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*args)

    return run


class Operator:
    """A function of tensors as an operator of PyTorch.

    Outside compilers and transforms, calls go past PyTorch's dispatcher, which takes 20 to 80 µs.

    Args:
        name: the operator is `torch.ops.blockspike.NAME`.
        function: the implementation, with type annotations.
        fake: the same for tensors of which only the shape is known.
        setup: (ctx, inputs, output) → None, saves what `backward` needs; None = no derivative.
        backward: (ctx, *grads) → gradients of the inputs.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        fake: Callable[..., Any],
        setup: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
    ):
        self.function = function = without_autocast(function)
        self.op: Any = torch.library.custom_op(f"blockspike::{name}", function, mutates_args=())
        self.op.register_fake(fake)
        self.op.register_vmap(self._one_by_one)
        # Transforms want forward and setup apart; without `backward`, they say that it is missing.
        of_transforms: dict[str, Any] = {
            "generate_vmap_rule": True,
            "forward": staticmethod(lambda *args: self.op(*args)),
            "setup_context": staticmethod(setup or (lambda ctx, inputs, output: None)),
        }
        self.eager: Any = None
        if setup is not None and backward is not None:
            self.op.register_autograd(backward, setup_context=setup)

            def forward(ctx: Any, *args: Any) -> Any:
                output = function(*args)
                setup(ctx, args, output)
                return output

            of_transforms["backward"] = staticmethod(backward)
            own = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
            self.eager = type(name, (torch.autograd.Function,), own)
        self.transformed: Any = type(name, (torch.autograd.Function,), of_transforms)

    def __call__(self, *args: Any, is_used: bool | None = None) -> Any:
        """Results of the function; the first argument is a tensor.

        `is_used`: whether a gradient is wanted; None = look at the arguments.
        """
        if is_compiled(args[0]):
            return self.op(*args)
        if is_transformed():
            return self.transformed.apply(*args)
        if is_used is None:
            is_used = torch.is_grad_enabled() and any(getattr(x, "requires_grad", 0) for x in args)
        # Forward mode is refused by PyTorch, and second derivatives by the operator.
        if is_used or forward_ad._current_level >= 0:
            return self.op(*args) if self.eager is None else self.eager.apply(*args)
        return self.function(*args)

    def _one_by_one(self, info: Any, in_dims: Any, *args: Any) -> Any:
        """Rule for `torch.vmap`: call for each of the batch."""

        def of(x: Any, dim: Any, i: int) -> Any:
            return x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x

        found = [
            self.op(*(of(x, dim, i) for x, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])


class Settings(NamedTuple):
    """Settings shared by all neurons of a simulation, as numbers and texts.

    Attributes:
        model_key, constants: the model by its `key`, and what `step` gets after 0 and 1.
        surrogate_key, slope_constants: the surrogate by its `key`, and its numbers.
        delay: of the recurrence in steps, or the longest if each neuron has its own.
        detach_reset, detach_recurrence: whether no gradient flows through the spikes of each.
    """

    model_key: str
    constants: Sequence[float]
    surrogate_key: str
    slope_constants: Sequence[float]
    delay: int
    detach_reset: bool
    detach_recurrence: bool

    @property
    def model(self) -> NeuronModel:
        """The neurons' model."""
        return model_of(self.model_key)

    @property
    def derived(self) -> Derived:
        """Texts of the model, for kernels."""
        return derived(self.model, 2 + len(self.constants))

    @property
    def surrogate(self) -> type[Surrogate]:
        """The class of the surrogate."""
        return surrogate_of(self.surrogate_key)

    def delays(self, steps: Tensor | None, span: Tensor | None) -> RecurrentDelays | None:
        """Delays of each neuron's spikes, given in steps [N]; None if all have one."""
        return None if steps is None or span is None else RecurrentDelays(steps, self.delay, span)


def _kernels(device: torch.device) -> Any:
    """The module that runs simulations on this device."""
    if device.type == "cpu":
        from blockspike.neurons.cpu import fused
    else:
        from blockspike.neurons.gpu import fused  # Triton is needed only here
    return fused


def _simulate(
    current: Tensor, parameters: Tensor, weight: Tensor | None, values: Tensor | None,
    before: Tensor | None, steps: Tensor | None, span: Tensor | None, model_key: str,
    constants: Sequence[float], surrogate_key: str, slope_constants: Sequence[float], delay: int,
    detach_reset: bool, detach_recurrence: bool, membrane: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Simulate neurons by kernels.

    Args:
        current: [T, B, N].
        parameters: [P, N], in the model's order.
        weight: recurrent weights [N, N] (post, pre).
        values, before: states [K, B, N] at the start, and spikes [D, B, N] still on their way.
        steps, span: delay of each neuron's spikes [N], and [] int64; see `RecurrentDelays`.
        membrane: whether membrane and threshold are wanted.
        keep: whether the last three results, which backward needs, are wanted.

    Returns:
        Spikes [T, B, N], states [K, B, N] after the last step, membrane and threshold [T, B, N];
        spikes as bytes [T, B, N], input of each step with recurrence [T, B·N], states before each
        chunk of steps. What is not wanted is empty.
    """
    s = Settings(
        model_key, constants, surrogate_key, slope_constants, delay, detach_reset,
        detach_recurrence,
    )  # fmt: skip
    check_values(s.model, parameters, weight, values, before, steps)
    if keep:
        slope_text(s.surrogate.formula, 2 + len(slope_constants))  # a bad formula is found here
    results = _kernels(current.device).forward(
        current, parameters, weight, values, before, s.delays(steps, span), s, membrane, keep
    )
    check_finite(results[1][: len(s.model.states)], current, s.model.states)
    return results


def _fake_simulate(current, parameters, weight, *others):
    model, constants, membrane, keep = model_of(others[4]), others[5], *others[-2:]
    n_steps, batch_size, n = current.shape
    n_columns, n_states = batch_size * n, len(model.all_states)
    level = current.shape if membrane else (0,)
    drives = (n_steps, n_columns) if keep and weight is not None else (0, 0)
    n_saved = _kernels(current.device).n_saved(n_steps) if keep else 0
    derived(model, 2 + len(constants))  # a bad step is found here
    return (
        current.new_empty(current.shape), parameters.new_empty(n_states, batch_size, n),
        parameters.new_empty(level), parameters.new_empty(level),
        current.new_empty(current.shape, dtype=torch.uint8), parameters.new_empty(drives),
        parameters.new_empty(n_saved, n_states, n_columns),
    )  # fmt: skip


def _setup(ctx, inputs, output):
    current, parameters, weight, values, before, steps, span, *settings, _, _ = inputs
    *_, spike_bytes, drives, saved = output
    drives = current if weight is None else drives
    fired = None if weight is None else spike_bytes
    ctx.save_for_backward(drives, saved, parameters, weight, before, steps, span, fired)
    ctx.settings, ctx.shape, ctx.dtype = settings, current.shape, current.dtype
    ctx.has_values = values is not None
    ctx.mark_non_differentiable(*output[4:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_spikes, grad_last, grad_membrane, grad_threshold, *_):
    drives, *saved = ctx.saved_tensors
    if grad_spikes is None:
        grad_spikes = torch.zeros(ctx.shape, dtype=ctx.dtype, device=drives.device)
    if grad_membrane is not None and not grad_membrane.numel():  # it was not wanted
        grad_membrane = grad_threshold = None
    needs = list(ctx.needs_input_grad[1:5])
    grads = simulate_backward(
        grad_spikes, grad_last, grad_membrane, grad_threshold, drives, *saved, *ctx.settings, needs
    )
    found = [x if x.numel() else None for x in grads]
    return (*found, *(None,) * (len(ctx.settings) + 3))


def _simulate_backward(
    grad_spikes: Tensor, grad_last: Tensor | None, grad_membrane: Tensor | None,
    grad_threshold: Tensor | None, drives: Tensor, saved: Tensor, parameters: Tensor,
    weight: Tensor | None, before: Tensor | None, steps: Tensor | None, span: Tensor | None,
    spike_bytes: Tensor | None, model_key: str, constants: Sequence[float], surrogate_key: str,
    slope_constants: Sequence[float], delay: int, detach_reset: bool, detach_recurrence: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the tensors that `simulate` got; empty ones for those without.

    `needs` says whether parameters, recurrent weight, states and spikes at the start need theirs.
    """
    s = Settings(
        model_key, constants, surrogate_key, slope_constants, delay, detach_reset,
        detach_recurrence,
    )  # fmt: skip
    shape, n_states = grad_spikes.shape, len(s.model.states)
    kernels, delays = _kernels(grad_spikes.device), s.delays(steps, span)
    fed_back = weight if not detach_recurrence else None
    level = None
    if grad_membrane is not None or grad_threshold is not None:
        zeros = torch.zeros(shape, dtype=parameters.dtype, device=parameters.device)
        level = [zeros if x is None else x for x in (grad_membrane, grad_threshold)]
    grad_current, of_states, sums = kernels.backward(
        grad_spikes, None if grad_last is None else grad_last[:n_states], level,
        drives.reshape(len(drives), -1), saved, parameters, fed_back, delays, s,
    )  # fmt: skip
    # Results of an operator must not share memory, not even empty ones.
    per_neuron, grad_weight, grad_values, grad_before, grad_steps = (
        parameters.new_empty(0) for _ in range(5)
    )
    if needs[0]:
        per_neuron = sums.view(len(parameters), *shape[1:]).sum(1).to(parameters.dtype)
    if weight is not None and spike_bytes is not None and delays is not None:
        grad_weight, grad_steps = delays.gradients(grad_current, weight, spike_bytes, before)
    elif weight is not None and needs[1]:
        grad_weight = kernels.weight_gradient(grad_current, spike_bytes, before, delay, weight)
    if needs[2]:
        grad_values = parameters.new_zeros(len(s.model.all_states), *shape[1:])
        grad_values[:n_states] = of_states[:n_states].view(n_states, *shape[1:])
    if before is not None and fed_back is not None and needs[3]:
        if delays is not None:
            grad_before = delays.gradient_of_before(grad_current, fed_back).to(before.dtype)
        else:
            grad_before = torch.zeros_like(before)
            first = grad_current[: len(before)]
            grad_before[: len(first)] = (first.to(fed_back.dtype) @ fed_back).to(before.dtype)
    return grad_current, per_neuron, grad_weight, grad_values, grad_before, grad_steps


def _fake_backward(
    grad_spikes, grad_last, grad_membrane, grad_threshold, drives, saved, parameters, weight,
    before, steps, *others,
):  # fmt: skip
    needs = others[-1]
    is_fed = before is not None and not others[-2] and needs[3]
    weight = weight if needs[1] or steps is not None else None
    values = (saved.shape[1], *grad_spikes.shape[1:])
    return (
        torch.empty_like(grad_spikes, memory_format=torch.contiguous_format),
        parameters.new_empty(parameters.shape if needs[0] else 0),
        parameters.new_empty(0 if weight is None else weight.shape).t(),  # as layers keep them
        parameters.new_empty(values if needs[2] else 0),
        parameters.new_empty(0) if before is None or not is_fed else torch.empty_like(before),
        parameters.new_empty(0 if steps is None or weight is None else steps.shape),
    )  # fmt: skip


simulate_backward = Operator("simulate_backward", _simulate_backward, _fake_backward)
simulate = Operator("simulate", _simulate, _fake_simulate, _setup, _backward)
