# JAX and the libraries are optional; their types are unknown here.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportFunctionMemberAccess=false
"""ALIF by a compiled scan in JAX, and the layers of libraries on JAX.

Import this module in a process of its own (`remote.py`): threads of XLA and PyTorch wait for work
in loops, and would take each other's cores.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.contenders import Size
from benchmarks.layers import make_inputs
from benchmarks.timing import Row, Turn, peak_bytes, repeat

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
    """Spikes and their weighted sum, whose value and gradient are compiled as one function.

    Args:
        simulate: (leaves, inputs) → spikes [T, B, N].
        leaves: NumPy arrays to differentiate by.
        inputs: NumPy array that is not differentiated.
        gradient: dLoss/dspikes [T, B, N]; or 1, so that the loss is the sum of all spikes.
        repeated: whether a turn is repeated if it is quick.
    """

    def __init__(
        self,
        simulate: Callable[..., Any],
        leaves: Sequence[Any],
        inputs: Any,
        gradient: Any = 1.0,
        repeated: bool = False,
    ):
        def loss(leaves: list, inputs: Any, gradient: Any) -> Any:
            return (simulate(leaves, inputs) * gradient).sum()

        self._arguments = jax.tree.map(jnp.asarray, (list(leaves), inputs, gradient))
        self._spikes, self._repeated = jax.jit(simulate), repeated
        self._forward, self._both = jax.jit(loss), jax.jit(jax.value_and_grad(loss))

    def spikes(self) -> Any:
        """Spikes as a NumPy array."""
        return np.asarray(self._spikes(*self._arguments[:2]))

    def about(self) -> Row:
        """How active the neurons are."""
        return {"firing_per_step": round(float(self.spikes().mean()), 5)}

    def gradients(self) -> list:
        """Gradients by the leaves, as NumPy arrays."""
        return jax.device_get(self._both(*self._arguments)[1])

    def turn(self) -> Turn:
        """Time the loss, and the loss with its gradient."""
        return repeat(self._once) if self._repeated else self._once()

    def _once(self) -> Turn:
        started = time.perf_counter()
        jax.block_until_ready(self._forward(*self._arguments))
        forwarded = time.perf_counter()
        jax.block_until_ready(self._both(*self._arguments))
        forward_s = forwarded - started
        return Turn(forward_s, max(time.perf_counter() - forwarded - forward_s, 0.0))

    def peak_bytes(self) -> int:
        """Peak memory of the gradient; call it in a new process."""
        self._both.lower(*self._arguments).compile()
        return peak_bytes(self.turn)


def neurons(arrays: Sequence[Any], gradient: Any, arp: int) -> Neurons:
    """The neurons alone, for current, β, p, b and, with recurrence, weights."""
    return Neurons(
        lambda own, _: alif(*own[:4], arp, *own[4:]), arrays, np.zeros(0), gradient, True
    )


def _layer(size: Size, run: Callable[..., Any]) -> Neurons:
    """Dense synapses, and neurons run by (current, recurrent weights if there are) → spikes."""
    draw = np.random.default_rng(0).uniform
    bound = size.n_inputs**-0.5
    shapes = (size.n_units, size.n_inputs), (size.n_units,)
    leaves = [draw(-bound, bound, shape).astype(np.float32) for shape in shapes]
    if size.recurrent:
        leaves.append(np.eye(size.n_units, dtype=np.float32))
    return Neurons(
        lambda own, x: run(x @ own[0].T + own[1], *own[2:]), leaves, make_inputs(size)[1].numpy()
    )


def scan_layer(size: Size) -> Neurons:
    """A layer of `alif`."""
    decay, b = jnp.full(size.n_units, _DECAY), jnp.ones(size.n_units)

    def run(current: Any, *recurrent_weight: Any) -> Any:
        return alif(current, decay, decay, b, size.arp_steps, *recurrent_weight)

    return _layer(size, run)


def spyx_layer(size: Size) -> Neurons:
    """A layer of Spyx's ALIF neurons, run as its users do by `spyx.nn.run`."""
    import spyx
    from flax import nnx

    neurons = spyx.nn.ALIF(
        (size.n_units,), _DECAY, _DECAY, activation=spyx.axn.superspike(_SLOPE), rngs=nnx.Rngs(0)
    )
    return _layer(size, lambda current: spyx.nn.run(neurons, current)[0])


def brainpy_layer(size: Size) -> Neurons:
    """A layer of BrainPy's ALIF neurons (brainpy.state), run by brainstate's loop."""
    import brainpy
    import brainstate
    import braintools
    import brainunit

    dt = 1.0 * brainunit.ms
    tau = -dt / math.log(_DECAY)
    neurons = brainpy.state.ALIF(
        size.n_units, R=1 / (1 - _DECAY) * brainunit.ohm, tau=tau, tau_a=tau,
        beta=1.0 * brainunit.mV, spk_fun=braintools.surrogate.ReluGrad(), spk_reset="hard",
    )  # fmt: skip

    def run(current: Any) -> Any:
        brainstate.nn.init_all_states(neurons, batch_size=current.shape[1])
        with brainstate.environ.context(dt=dt):
            return brainstate.transform.for_loop(
                lambda drive: neurons.update(drive * brainunit.mA), current
            )

    return _layer(size, run)


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
        self._batches, self._n_turns = jax.tree.map(jnp.asarray, batches), 0
        state = jax.tree.map(jnp.asarray, state)
        fixed = {name: x for name, x in state.items() if name.endswith(".b")}
        self._trained = {name: x for name, x in state.items() if name not in fixed}

        def layer(inputs: Any, own: dict[str, Any], name: str) -> Any:
            current = inputs @ own[f"{name}.weight"][0].T + own[f"{name}.bias"]
            rest = (own[f"{name}.{x}"] for x in ("beta", "p", "b"))
            return alif(current, *rest, arp, own[f"{name}.recurrent_weight"])

        def loss(trained: dict[str, Any], inputs: Any, labels: Any) -> Any:
            own = trained | fixed
            spikes = layer(layer(inputs, own, "layers.0"), own, "layers.1")
            current = spikes @ own["readout.weight"][0].T + own["readout.bias"]

            def integrate(membrane: Any, drive: Any) -> tuple:
                membrane = own["readout.beta"] * membrane + drive
                return membrane, membrane

            scores = lax.scan(integrate, jnp.zeros(current.shape[1:]), current)[1].sum(0)
            return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1).mean()

        def step(*arguments: Any) -> tuple:
            value, grads = jax.value_and_grad(loss)(*arguments)
            return value, jax.tree.map(_adam, arguments[0], grads)

        self._step = jax.jit(step)

    def loss(self) -> float:
        """Loss of the first batch."""
        return float(self._step(self._trained, *self._batches[0])[0])

    def turn(self) -> Turn:
        """Time the step on the next batch, all of it as `forward`."""
        batch = self._batches[self._n_turns % len(self._batches)]
        self._n_turns += 1
        started = time.perf_counter()
        jax.block_until_ready(self._step(self._trained, *batch))
        return Turn(time.perf_counter() - started)

    def about(self) -> Row:
        """Nothing but its times."""
        return {}

    def peak_bytes(self) -> int:
        """Peak memory of a step; call it in a new process."""
        self._step.lower(self._trained, *self._batches[0]).compile()
        return peak_bytes(self.turn)


def _adam(x: Any, grad: Any) -> tuple:
    """The first step of Adam, with its moments."""
    mean, square = 0.1 * grad, 0.001 * grad**2
    return x - 1e-3 * (mean / 0.1) / (jnp.sqrt(square / 0.001) + 1e-5), mean, square
