"""The Triton kernels against `standard`, on a GPU or (TRITON_INTERPRET=1) in Triton's interpreter.

Tests for all methods cover bad arguments and general properties.
"""

import json
import os
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_adlif
import test_c_silif
import test_derivative
import test_euler_adlif
import test_glif
import test_recurrent_delays
import test_state
import torch
from gpu_cases import (
    DEVICE,
    INTERPRETED,
    WIDE,
    make_gpu_inputs,
    one_tile,  # noqa: F401
    to_device,
    triton_kernels,  # noqa: F401
)
from neuron_cases import (
    DETACHED,
    LEAST,
    OTHER_SURROGATES,
    SURROGATES,
    Gaussian,
    alif,
    assert_close,
    assert_gradient_alone,
    assert_same_result,
    check_kernels,
    cotangent,
    make_inputs,
    run,
)
from test_golden import CASES, load
from test_kernels_cpu import poison
from torch.autograd.graph import saved_tensors_hooks

import blockspike as bs
from blockspike.neurons import MultiGaussian, ops
from blockspike.neurons.alif import ALIF
from blockspike.neurons.blocks import BLOCKS
from blockspike.neurons.cpu import fused as fused_cpu
from blockspike.neurons.gpu import fused as fused_gpu
from blockspike.neurons.ops import _kernels as kernels_of  # before `triton_kernels` replaces it
from blockspike.neurons.simulate import simulate
from tiers import mostly_slow

pytestmark = pytest.mark.usefixtures("triton_kernels")
RTOL = {torch.float32: 1e-4, torch.float64: 1e-9}
SHAPES = [(11, 1, 1), (1, 2, 5), (12, 2, 4), (13, 3, 3), *WIDE]
MULTI_GAUSSIAN = MultiGaussian()
QUICK_CASES = [CASES[i] for i in (0, 8, 10)]
FLOAT32_CASES = QUICK_CASES + CASES[3:10:3] if INTERPRETED else CASES


def check(inputs, **options):
    expected = run(inputs, method="standard", **options)
    rtol = RTOL[inputs["beta"].dtype]
    assert_same_result(run(inputs, method="fused", **options), expected, rtol)
    return expected[0]


@pytest.mark.parametrize("detach_spikes", mostly_slow(DETACHED, lambda x: x in (False, "reset")))
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize(
    "kind",
    mostly_slow(
        [*((surrogate, True) for surrogate in SURROGATES), (MULTI_GAUSSIAN, False)],
        lambda kind: kind[0] == MULTI_GAUSSIAN,
    ),
    ids=["FastSigmoid", "Boxcar", "MultiGaussian", "no adaptation"],
)
def test_every_option(kind, recurrent, detach_spikes):
    surrogate, adaptive = kind
    inputs = make_gpu_inputs((13, 2, 5), recurrent=recurrent, adaptive=adaptive)
    assert check(inputs, arp=2, detach_spikes=detach_spikes, surrogate=surrogate).sum() > 5


@pytest.mark.parametrize(
    "surrogate", mostly_slow(OTHER_SURROGATES, lambda s: isinstance(s, Gaussian)), ids=repr
)
def test_every_surrogate(surrogate):
    assert check(make_gpu_inputs((13, 2, 5)), surrogate=surrogate).sum() > 5


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float64) for shape in SHAPES),
        *((shape, torch.float32) for shape in SHAPES[3:]),
    ],
    ids=str,
)
@pytest.mark.parametrize("recurrent", [True, False])
def test_odd_sizes(shape, recurrent, dtype):
    check(make_gpu_inputs(shape, recurrent=recurrent, dtype=dtype), arp=4, detach_spikes=False)


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("arp", [0, 1, 7, 8, 9, 10**12])
def test_every_arp(arp, recurrent):
    options: dict[str, Any] = {"recurrent_delay": min(arp + 1, 20), "detach_spikes": False}
    check(make_gpu_inputs((9, 1, 6), recurrent=recurrent), arp=arp, **options)


@pytest.mark.parametrize("membrane", mostly_slow([True, False], lambda given: given))
@pytest.mark.parametrize("detach_spikes", mostly_slow([False, True], lambda detach: not detach))
@pytest.mark.parametrize("delay", mostly_slow([None, 1, 3, 20], lambda delay: delay in (None, 3)))
@pytest.mark.parametrize("kind", ["alif", *mostly_slow(test_state.KINDS, lambda _: False)])
def test_the_whole_from_its_parts(kind, delay, detach_spikes, membrane):
    options: dict[str, Any] = {
        "recurrent": delay is not None,
        "delay": delay,
        "detach_spikes": detach_spikes,
        "membrane": membrane,
        "device": DEVICE,
    }
    whole = test_state.made(kind, "standard", (11, 2, 3), **options).run([])
    case = test_state.made(kind, "fused", (11, 2, 3), **options)
    for cuts in ([], [1, 4, 9]):
        test_state.assert_the_same(case.run(cuts), whole)


@pytest.mark.parametrize("shape", [(30, 2, 3), *WIDE], ids=str)
def test_detached_recurrence_needs_no_chain_in_backward(shape):
    check(make_gpu_inputs(shape, recurrent=True), arp=5)


@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("delay", mostly_slow([1, 4, 8, 30], lambda delay: delay in (1, 30)))
def test_every_recurrent_delay(delay, detach_spikes):
    inputs = make_gpu_inputs((13, 2, 5), recurrent=True)
    options = {"arp": 1, "recurrent_delay": delay, "detach_spikes": detach_spikes}
    assert check(inputs, **options).sum() > 5


@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("longest", mostly_slow([1, 5, 20], lambda longest: longest == 5))
def test_recurrent_delays_of_neurons(monkeypatch, longest, with_state, detach_spikes):
    monkeypatch.setattr(test_recurrent_delays, "N", 5)
    monkeypatch.setattr(test_recurrent_delays, "B", 2)
    inputs = test_recurrent_delays.made_inputs(longest, 13, with_state)
    inputs = {name: x.detach().to(DEVICE).requires_grad_() for name, x in inputs.items()}
    options: dict[str, Any] = {"detach_spikes": detach_spikes}
    expected, grads = test_recurrent_delays.run(inputs, longest, method="standard", **options)
    trace, own = test_recurrent_delays.run(inputs, longest, method="fused", **options)
    assert expected.spikes.any() and torch.equal(trace.spikes, expected.spikes)
    for name, x in expected.state.as_dict().items():
        assert_close(trace.state.as_dict()[name], x, 1e-9, name)
    for name, grad in grads.items():
        assert_close(own[name], grad, 1e-9, name)


@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("delay", mostly_slow([0, 1, 3], lambda delay: delay != 1))  # 0: none
@pytest.mark.parametrize(
    "dtype",
    mostly_slow([torch.float64, torch.float32], lambda x: x == torch.float64),
    ids=str,
)
@pytest.mark.parametrize(
    "euler", mostly_slow(test_euler_adlif.EULERS, lambda euler: euler == "symplectic")
)
def test_another_model(euler, dtype, delay, detach_spikes):
    inputs = test_euler_adlif.make_inputs((13, 2, 5), recurrent=delay > 0, dtype=dtype)
    inputs = {name: value.to(DEVICE) for name, value in inputs.items()}
    check_kernels(
        bs.euler_adlif, inputs, RTOL[dtype], (0.02, 0.6), euler=euler,
        recurrent_delay=max(delay, 1), detach_spikes=detach_spikes, q=12.0,
    )  # fmt: skip


@pytest.mark.parametrize("detach_spikes", mostly_slow([False, True], lambda detach: not detach))
@pytest.mark.parametrize("delay", mostly_slow([0, 1, 3], lambda delay: delay == 3))  # 0: none
@pytest.mark.parametrize(
    ("neurons", "make_inputs"),
    [(bs.adlif, test_adlif.make_inputs), (bs.c_silif, test_c_silif.make_inputs)],
    ids=["adlif", "c_silif"],
)
def test_published_neurons(neurons, make_inputs, delay, detach_spikes):
    inputs = {name: value.to(DEVICE) for name, value in make_inputs((13, 2, 5), delay).items()}
    options: dict[str, Any] = {
        "recurrent_delay": max(delay, 1), "detach_spikes": detach_spikes,
    }  # fmt: skip
    check_kernels(neurons, inputs, 1e-9, (0.05, 0.9), **options)


@pytest.mark.parametrize("coupled", mostly_slow([True, False], lambda coupled: coupled))
def test_the_model_with_most_parts(coupled):
    inputs = test_glif.make_inputs((13, 2, 5), coupled, recurrent=True)
    test_glif.check({name: value.to(DEVICE) for name, value in inputs.items()}, 1e-9, True)


@pytest.mark.parametrize("membrane", mostly_slow([True, False], lambda given: given))
def test_a_model_whose_derivative_nobody_has_written(membrane):
    test_derivative.check(False, membrane, shape=(13, 2, 5), device=DEVICE)


def test_the_smallest_model():
    model, beta = LEAST, torch.linspace(0.3, 0.9, 5).double().to(DEVICE)
    current = make_gpu_inputs((13, 2, 5))["current"]
    found = []
    for method in ("standard", "fused"):
        leaves = [x.detach().requires_grad_() for x in (current, beta)]
        trace = simulate(model, leaves[0], {"beta": leaves[1]}, method=method)
        found.append([trace.spikes, *torch.autograd.grad(trace.spikes.sum(), leaves)])
    assert found[0][0].sum() > 5
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_without_memory_of_spikes():
    inputs = make_gpu_inputs((13, 2, 5))
    for name, value in (("p", 0.0), ("b", 0.4)):
        inputs[name].data.fill_(value)
    assert check(inputs, arp=1).sum() > 5


@pytest.mark.parametrize("with_grad", [True, False])
@pytest.mark.parametrize("adaptive", [True, False])
def test_membrane_and_threshold(adaptive, with_grad):
    inputs = make_gpu_inputs((9, 2, 4), recurrent=True, adaptive=adaptive)
    expected = alif(**inputs, arp=4, membrane=True, method="standard")
    with torch.set_grad_enabled(with_grad):
        trace = alif(**inputs, arp=4, membrane=True)
    for name in ("membrane", "threshold"):
        assert_close(getattr(trace, name), getattr(expected, name), 1e-12, name)
    assert trace.membrane is not None and trace.threshold is not None
    assert torch.equal((trace.membrane > trace.threshold).double(), trace.spikes)


@pytest.mark.usefixtures("one_tile")
@pytest.mark.parametrize(
    "case", mostly_slow(CASES, lambda case: case in QUICK_CASES), ids=lambda case: case["file"][:-4]
)
def test_golden(case):
    arrays, inputs, options = load(case, torch.float64)
    inputs = to_device(inputs)
    trace = alif(**inputs, **options, membrane=True)
    np.testing.assert_array_equal(trace.spikes.detach().cpu(), arrays["spikes"])
    assert trace.membrane is not None and trace.threshold is not None
    membrane, threshold = trace.membrane.detach().cpu(), trace.threshold.detach().cpu()
    np.testing.assert_allclose(membrane, arrays["membrane"], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(threshold, arrays["threshold"], rtol=1e-6)
    trace.spikes.backward(torch.tensor(arrays["cotangent"]).to(DEVICE))
    for name, value in inputs.items():
        expected = np.broadcast_to(arrays[f"standard_grad_{name}"], value.shape)
        grad = torch.zeros_like(value) if value.grad is None else value.grad
        atol = 1e-7 * np.abs(expected).max()
        np.testing.assert_allclose(grad.cpu(), expected, rtol=1e-6, atol=atol, err_msg=name)


@pytest.mark.usefixtures("one_tile")
@pytest.mark.parametrize(
    "case",
    mostly_slow(FLOAT32_CASES, lambda case: case in QUICK_CASES),
    ids=lambda case: case["file"][:-4],
)
def test_golden_spikes_float32(case):
    arrays, inputs, options = load(case, torch.float32)
    with torch.no_grad():
        spikes = alif(**to_device(inputs), **options).spikes
    np.testing.assert_array_equal(spikes.cpu(), arrays["spikes"])


@pytest.mark.slow
@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
def test_bfloat16_current(recurrent, detach_spikes):
    # The current holds multiples of 1/64, exact in bfloat16, so that only results are rounded.
    inputs = make_gpu_inputs((9, 2, 4), recurrent=recurrent, dtype=torch.float32)
    inputs["current"].data.clamp_(-2, 2)
    surrogate, weight = MULTI_GAUSSIAN, inputs.get("recurrent_weight")
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [inputs["current"].detach().to(dtype).requires_grad_()]
        leaves += [inputs[name] for name in inputs if name != "current"]
        # `simulate` refuses bfloat16 on the CPU, where the interpreter runs.
        spikes, _, membrane, *_ = ops.simulate(
            leaves[0], torch.stack(leaves[1:4]), weight, None, None, None, None, ALIF.key, (2.0,),
            surrogate.key, surrogate.constants, 3, detach_spikes, detach_spikes, True, True,
        )  # fmt: skip
        gradient = cotangent(spikes).bfloat16().to(dtype)
        results.append((spikes, membrane, torch.autograd.grad(spikes, leaves, gradient)))
    (expected, expected_membrane, expected_grads), (half, membrane, grads) = results
    assert half.dtype == grads[0].dtype == torch.bfloat16
    assert torch.equal(half.float(), expected) and half.sum() > 5
    assert torch.equal(membrane, expected_membrane)
    for grad, reference in zip(grads, expected_grads, strict=True):
        # Recurrence feeds back the current's gradient as stored, with 8 bits of precision.
        assert_close(grad.float(), reference, 1e-2, "gradient")
    assert all(grad.dtype == torch.float32 for grad in grads[1:])


def test_dtypes_of_a_current_on_a_gpu():
    half = torch.zeros(9, 2, 5, dtype=torch.bfloat16, device="meta")
    beta = torch.zeros(5, device="meta")
    with pytest.raises(ValueError, match="^current: expected .*got torch.bfloat16"):
        alif(half, beta, method="standard")
    with pytest.raises(ValueError, match="^method='fused': "):  # valid dtype, but no Triton device
        alif(half, beta, method="fused")
    with pytest.raises(ValueError, match="^beta: expected .*torch.float32.*got .*torch.bfloat"):
        alif(half, beta.bfloat16())


def test_a_gpu_gets_the_triton_kernels():
    assert kernels_of(torch.device("cuda")) is fused_gpu
    assert kernels_of(torch.device("cpu")) is fused_cpu


def test_a_model_with_accumulators(monkeypatch):
    inputs = make_inputs((9, 2, 4))

    def differentiate(inputs):
        current, *parameters = inputs.values()
        named = dict(zip(BLOCKS.parameters, parameters, strict=True))
        spikes = simulate(BLOCKS, current, named, (3.0,)).spikes
        return spikes, torch.autograd.grad(spikes, inputs.values(), cotangent(spikes))

    spikes, grads = differentiate(to_device(inputs))
    monkeypatch.setattr(ops, "_kernels", kernels_of)
    expected_spikes, expected = differentiate(inputs)
    assert torch.equal(spikes.cpu(), expected_spikes) and spikes.sum() > 3
    for ours, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # from the interpreter
@pytest.mark.parametrize("step", [3, 5, 11])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_current_that_is_not_finite(value, step):
    inputs = make_gpu_inputs((12, 2, 3), recurrent=step == 5)
    inputs["current"].data[3, 1, 2] = 100.0  # a spike, so that steps 4 … 8 are refractory
    inputs["current"].data[step, 1, 2] = float(value)
    with pytest.raises(ValueError, match="^current: expected finite") as error:
        alif(**inputs, arp=5)
    assert f"got {value} at step {step}, sample 1, neuron 2 (1 such values)" in str(error.value)


@pytest.mark.parametrize("recurrent", [True, False])
def test_uninitialised_memory_is_not_read(monkeypatch, recurrent):
    inputs = make_gpu_inputs((9, 2, 4), recurrent=recurrent)
    options = {"arp": 3, "detach_spikes": False}

    def results() -> list[torch.Tensor]:
        with torch.no_grad():
            trace = alif(**inputs, **options, membrane=True)
        found = [trace.membrane, trace.threshold, *run(inputs, **options)[1].values()]
        return [x for x in found if x is not None]

    expected = results()
    calls = poison(monkeypatch, torch, "empty_like"), poison(monkeypatch, torch.Tensor, "new_empty")
    assert all(map(torch.equal, results(), expected))
    assert all(calls)


@pytest.mark.skipif(not INTERPRETED, reason="looks at what Triton's interpreter reads and writes")
@pytest.mark.parametrize("recurrent", [True, False])
def test_nothing_is_read_or_written_outside_the_tensors(monkeypatch, recurrent):
    from triton.runtime.interpreter import InterpreterBuilder

    given: list[tuple[int, int]] = []  # first and last byte + 1 of each tensor of a launch
    n_checked = []

    def launch(*args, original=fused_gpu._launch, **options):
        tensors = [x for x in args if isinstance(x, torch.Tensor) and x.numel()]
        given[:] = [(x.data_ptr(), x.data_ptr() + x.nbytes) for x in tensors]
        original(*args, **options)

    def check(builder, pointers, *args, original, n_before_mask):
        at = pointers.data[args[n_before_mask].data]
        inside = [(first <= at) & (at < last) for first, last in given]
        assert np.logical_or.reduce(inside).all()
        n_checked.append(at.size)
        return original(builder, pointers, *args)

    monkeypatch.setattr(fused_gpu, "_launch", launch)
    for name, n_before_mask in (("create_masked_load", 0), ("create_masked_store", 1)):
        original = getattr(InterpreterBuilder, name)
        checked = partialmethod(check, original=original, n_before_mask=n_before_mask)
        monkeypatch.setattr(InterpreterBuilder, name, checked)
    run(make_gpu_inputs((9, 1, 5), recurrent=recurrent), arp=2, detach_spikes=False)
    assert sum(n_checked) > 9 * 5 * 6


def test_memory_layouts_without_modifying_inputs():
    inputs = make_gpu_inputs((9, 2, 4), recurrent=True)
    expected = run(inputs, arp=2)
    other = {name: value.detach().clone() for name, value in inputs.items()}
    other["current"] = other["current"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    other["recurrent_weight"] = other["recurrent_weight"].T.contiguous().T
    other["beta"] = torch.stack([other["beta"], other["beta"]], 1)[:, 0]
    before = {name: value.clone() for name, value in other.items()}
    assert_same_result(run(other, arp=2), expected)
    assert all(torch.equal(other[name], before[name]) for name in other)
    grads = []
    for gradient in (torch.ones_like(expected[0]), expected[0].new_ones(()).expand(9, 2, 4)):
        trace = alif(**inputs, arp=2)
        grads.append(torch.autograd.grad(trace.spikes, list(inputs.values()), gradient))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("name", ["current", "beta", "p", "b", "recurrent_weight"])
def test_one_differentiable_argument_is_enough(name):
    assert_gradient_alone(alif, make_gpu_inputs((9, 1, 5), recurrent=True), name)


def test_saved_bytes_per_neuron_step():
    inputs = make_gpu_inputs((32, 2, 4), recurrent=True, dtype=torch.float32)
    given = {value.untyped_storage().data_ptr() for value in inputs.values()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        trace = alif(**inputs, arp=7)
    assert trace.spikes.untyped_storage().data_ptr() not in kept  # the caller may free it
    of_neurons = 3 * 4 * 4  # parameters
    per_step = (sum(kept.values()) - of_neurons) / trace.spikes.numel()
    assert per_step == 4 + 1 + 3 * 4 / fused_gpu.CHUNK


def test_recurrence_is_not_multiplied_in_half_precision():
    inputs = make_gpu_inputs((9, 2, 4), recurrent=True, dtype=torch.float32)
    inputs["recurrent_weight"].data.mul_(1.001)
    expected = run(inputs, arp=1, detach_spikes=False)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert_same_result(run(inputs, arp=1, detach_spikes=False), expected)


def test_second_derivatives_are_refused():
    inputs = make_gpu_inputs((9, 2, 4))
    spikes = alif(**inputs).spikes
    (grad,) = torch.autograd.grad(spikes.sum(), inputs["current"], create_graph=True)
    with pytest.raises(RuntimeError, match="simulate_backward"):
        grad.sum().backward()


@pytest.mark.slow
def test_kernels_compile_without_a_gpu(tmp_path):
    # The interpreter runs Python and accepts much that Triton's compiler refuses.
    script = Path(__file__).parents[2] / "tools" / "compile_kernels.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["name"] for kernel in kernels} == {"forward", "backward", "sum_rows"}
    assert {kernel.get("model") for kernel in kernels} == {
        None,
        "alif",
        "alif, refractory period 0",
        "SE-adLIF",
        "EF-adLIF",
        "adLIF",
        "C-SiLIF",
        "glif",
        "least",
        "varied",
    }
    for kernel in kernels:
        assert kernel["stack_bytes"] == 0  # everything is in registers
        if kernel["name"] == "forward" or kernel.get("real") == "fp32":
            assert kernel["fused_multiply_adds"] == 0  # steps are rounded as in the loop
    assert any(
        kernel["fused_multiply_adds"] for kernel in kernels
    )  # exp in fp64 has some, so the count works
