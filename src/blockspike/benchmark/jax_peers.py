# JAX and the libraries are optional; their types are unknown here.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportFunctionMemberAccess=false
"""ALIF by a compiled scan in JAX, and the layers of libraries on JAX, for the speed benchmark.

JAX is in the extra `peers`; this module is imported only where one of its contenders is made. They
run in processes of their own (`remote.py`): the threads of XLA and those of PyTorch wait for work
in loops, and would take each other's cores.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blockspike.benchmark.timing import Turn, repeat

_DECAY = 0.9
_SLOPE = 10.0  # of the fast sigmoid


def _gaussian(u: Any, mean: float, width: float) -> Any:
    return jnp.exp(-(((u - mean) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))


@jax.custom_jvp
def spike(u: Any) -> Any:
    """1 where u > 0, else 0, with the derivative of `MultiGaussian`."""
    return (u > 0).astype(u.dtype)


@spike.defjvp
def _spike_jvp(primals: tuple, tangents: tuple) -> tuple:
    (u,), (du,) = primals, tangents
    sides = _gaussian(u, 0.5, 3.0) + _gaussian(u, -0.5, 3.0)
    return spike(u), 0.5 * (1.15 * _gaussian(u, 0.0, 0.5) - 0.15 * sides) * du


def alif(current: Any, beta: Any, p: Any, b: Any, arp: int, recurrent_weight: Any = None) -> Any:
    """Spikes [T, B, N] of ALIF as `blockspike.alif` has them, by `lax.scan`.

    Arguments as there; the delay of the recurrence is arp + 1, and its spikes carry no gradient.
    """
    n_steps, batch_size, n_neurons = current.shape
    delay = arp + 1
    slots = jnp.arange(n_steps) % delay  # of a ring of the last spikes

    def step(carry: tuple, inputs: tuple) -> tuple:
        membrane, adaptation, refractory_left, ring = carry
        drive, slot = inputs
        if recurrent_weight is not None:
            fed_back = lax.dynamic_index_in_dim(ring, slot, keepdims=False)
            drive = drive + fed_back @ recurrent_weight.T
        membrane = beta * membrane + drive * (refractory_left == 0)
        s = spike(membrane - (1 + b * adaptation))
        fixed = lax.stop_gradient(s)
        if recurrent_weight is not None:
            ring = lax.dynamic_update_index_in_dim(ring, fixed, slot, 0)
        refractory_left = jnp.where(s > 0, arp, jnp.maximum(refractory_left - 1, 0))
        return (membrane * (1 - fixed), p * adaptation + s, refractory_left, ring), s

    rest = jnp.zeros((batch_size, n_neurons))
    ring = jnp.zeros((delay if recurrent_weight is not None else 0, batch_size, n_neurons))
    return lax.scan(step, (rest, rest, rest, ring), (current, slots))[1]


class Neurons:
    """Forward and backward of the neurons alone, each compiled as one function.

    Args:
        arrays: current, β, p, b and, with recurrence, weights, as NumPy arrays.
        gradient: dLoss/dspikes [T, B, N].
        arp: refractory period in steps.
    """

    def __init__(self, arrays: list, gradient: Any, arp: int):
        self._arrays = [jnp.asarray(x) for x in arrays]
        self._gradient = jnp.asarray(gradient)

        def loss(arrays: list, gradient: Any) -> Any:
            current, beta, p, b, *weight = arrays
            return (alif(current, beta, p, b, arp, *weight) * gradient).sum()

        self._spikes = jax.jit(lambda arrays: alif(*arrays[:4], arp, *arrays[4:]))
        self._forward, self._both = jax.jit(loss), jax.jit(jax.value_and_grad(loss))

    def spikes(self) -> Any:
        """Spikes as a NumPy array."""
        return jax.device_get(self._spikes(self._arrays))

    def gradients(self) -> list:
        """Gradients of the arguments as NumPy arrays."""
        return jax.device_get(self._both(self._arrays, self._gradient)[1])

    def turn(self) -> Turn:
        """Time forward alone, and forward with backward."""
        arguments = self._arrays, self._gradient
        return repeat(lambda: _turn(self._forward, self._both, arguments))


class Network:
    """One training step of a classifier with two recurrent layers of ALIF and a leaky readout.

    Forward, loss, backward and Adam are compiled as one function. Each step starts from the same
    weights, and products are dense.

    Args:
        state: weights by the names of `SpikingClassifier`, as NumPy arrays.
        arp: refractory period in steps.
        batches: inputs [T, B, K] and labels [B] as NumPy arrays.
    """

    def __init__(self, state: dict[str, Any], arp: int, batches: list[tuple[Any, Any]]):
        self._state = {name: jnp.asarray(x) for name, x in state.items()}
        self._batches = [(jnp.asarray(x), jnp.asarray(y)) for x, y in batches]
        trained = [name for name in state if not name.endswith(".b")]

        def layer(inputs: Any, own: dict[str, Any], name: str) -> Any:
            weight, bias, beta, p, b, recurrent_weight = (
                own[f"{name}.{x}"] for x in ("weight", "bias", "beta", "p", "b", "recurrent_weight")
            )
            return alif(inputs @ weight[0].T + bias, beta, p, b, arp, recurrent_weight)

        def loss(own: dict[str, Any], inputs: Any, labels: Any) -> Any:
            spikes = layer(layer(inputs, own, "layers.0"), own, "layers.1")
            current = spikes @ own["readout.weight"][0].T + own["readout.bias"]

            def integrate(membrane: Any, drive: Any) -> tuple:
                membrane = own["readout.beta"] * membrane + drive
                return membrane, membrane

            scores = lax.scan(integrate, jnp.zeros(current.shape[1:]), current)[1].sum(0)
            return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1).mean()

        def step(state: dict[str, Any], inputs: Any, labels: Any) -> tuple:
            def of_trained(own: dict[str, Any]) -> Any:
                return loss(state | own, inputs, labels)

            own = {name: state[name] for name in trained}
            value, grads = jax.value_and_grad(of_trained)(own)
            return value, {name: _adam(own[name], grads[name]) for name in trained}

        self._step = jax.jit(step)

    def loss(self) -> float:
        """Loss of the first batch."""
        return float(self._step(self._state, *self._batches[0])[0])

    def step(self, index: int) -> Turn:
        """Time the step on a batch, all of it as `forward`."""
        inputs, labels = self._batches[index]
        started = time.perf_counter()
        jax.block_until_ready(self._step(self._state, inputs, labels))
        return Turn(time.perf_counter() - started, 0.0)


def _adam(x: Any, grad: Any) -> tuple:
    """The first step of Adam, with its moments."""
    mean, square = 0.1 * grad, 0.001 * grad**2
    return x - 1e-3 * (mean / 0.1) / (jnp.sqrt(square / 0.001) + 1e-5), mean, square


def _turn(forward: Callable[..., Any], both: Callable[..., Any], arguments: tuple) -> Turn:
    started = time.perf_counter()
    jax.block_until_ready(forward(*arguments))
    forwarded = time.perf_counter()
    jax.block_until_ready(both(*arguments))
    forward_s = forwarded - started
    return Turn(forward_s, max(time.perf_counter() - forwarded - forward_s, 0.0))


class _InTorch(torch.autograd.Function):
    """A compiled function of JAX and its compiled derivative, with tensors that share memory."""

    @staticmethod
    def forward(ctx, compiled: tuple[Callable, Callable], *tensors: Tensor):
        simulate, ctx.differentiate = compiled
        spikes, ctx.pullback = simulate(*(jnp.from_dlpack(x.detach()) for x in tensors))
        return torch.from_dlpack(spikes.block_until_ready())

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore
        found = ctx.differentiate(ctx.pullback, jnp.from_dlpack(grads[0].contiguous()))
        return None, None, *(torch.from_dlpack(x) for x in jax.block_until_ready(found))


class JaxLayer(nn.Module):
    """Dense synapses and neurons in JAX as a module of PyTorch.

    Args:
        n_inputs, n_units: sizes.
        simulate: (current [T, B, N], recurrent weights [N, N] if `recurrent`) → spikes [T, B, N].
        recurrent: whether the layer has recurrent weights.
    """

    def __init__(
        self, n_inputs: int, n_units: int, simulate: Callable[..., Any], recurrent: bool = False
    ):
        super().__init__()
        bound = 1 / math.sqrt(n_inputs)
        self.weight = nn.Parameter(torch.empty(n_units, n_inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_units).uniform_(-bound, bound))
        self.recurrent_weight = nn.Parameter(torch.eye(n_units)) if recurrent else None

        def layer(inputs: Any, weight: Any, bias: Any, *recurrent_weight: Any) -> Any:
            return simulate(inputs @ weight.T + bias, *recurrent_weight)

        def differentiable(inputs: Any, *parameters: Any) -> tuple:
            return jax.vjp(lambda *own: layer(inputs, *own), *parameters)

        self._compiled = (
            jax.jit(differentiable), jax.jit(lambda pullback, gradient: pullback(gradient))
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        """Spikes [T, B, N] of inputs [T, B, K]."""
        return _InTorch.apply(self._compiled, inputs, *self.parameters())  # pyright: ignore


def scan_layer(n_inputs: int, n_units: int, recurrent: bool, arp: int) -> JaxLayer:
    """Make a layer of `alif`."""
    constant = jnp.full(n_units, _DECAY), jnp.full(n_units, _DECAY), jnp.ones(n_units)

    def simulate(current: Any, recurrent_weight: Any = None) -> Any:
        return alif(current, *constant, arp, recurrent_weight)

    return JaxLayer(n_inputs, n_units, simulate, recurrent)


def spyx_layer(n_inputs: int, n_units: int) -> JaxLayer:
    """Make a layer of Spyx's ALIF neurons, run as its users do by `spyx.nn.run`."""
    import spyx
    from flax import nnx

    neurons = spyx.nn.ALIF(
        (n_units,), _DECAY, _DECAY, activation=spyx.axn.superspike(_SLOPE), rngs=nnx.Rngs(0)
    )
    return JaxLayer(n_inputs, n_units, lambda current: spyx.nn.run(neurons, current)[0])


def brainpy_layer(n_inputs: int, n_units: int) -> JaxLayer:
    """Make a layer of BrainPy's ALIF neurons (brainpy.state), run by brainstate's loop."""
    import brainpy
    import brainstate
    import braintools
    import brainunit

    dt = 1.0 * brainunit.ms
    tau = -dt / math.log(_DECAY)
    neurons = brainpy.state.ALIF(
        n_units, R=1 / (1 - _DECAY) * brainunit.ohm, tau=tau, tau_a=tau, beta=1.0 * brainunit.mV,
        spk_fun=braintools.surrogate.ReluGrad(), spk_reset="hard",
    )  # fmt: skip

    def simulate(current: Any) -> Any:
        brainstate.nn.init_all_states(neurons, batch_size=current.shape[1])
        with brainstate.environ.context(dt=dt):
            return brainstate.transform.for_loop(
                lambda drive: neurons.update(drive * brainunit.mA), current
            )

    return JaxLayer(n_inputs, n_units, simulate)
