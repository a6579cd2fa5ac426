"""Exported neurons spike in Brian 2 as here, step for step; the NESTML is that which NEST ran."""

import re
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockspike as bs
import export_peers

ROOT = Path(__file__).parents[2]
NEURON = bs.FittedNeuron("cell", 15.0, 120.0, 0.3, 0.02, 0.4, arp_ms=2.0, dt_ms=0.5, noise=0.1)
EVERY_PART = replace(
    NEURON, name="every part", arp_ms=2.1, b_2=-0.1, tau_adaptation_2_ms=20.0,
    current_1_pa=30.0, tau_current_1_ms=8.0, current_2_pa=-2.0, tau_current_2_ms=200.0,
    reset_share=0.25, coupling=0.3, tau_coupling_ms=5.0, coupling_onset=0.5, coupling_width=0.2,
)  # fmt: skip
NUMPY_TARGET = "import brian2\nbrian2.prefs.codegen.target = 'numpy'\n"  # compiles nothing
needs_brian2 = pytest.mark.skipif(find_spec("brian2") is None, reason="needs Brian 2")


def run_python(folder: Path, *arguments: str) -> str:
    """Run Python in a folder and return what it prints; Brian 2 warns when it is imported."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def parameters_of(neuron: bs.FittedNeuron) -> dict[str, Any]:
    return {key: value for key, value in asdict(neuron).items() if key != "name"}


def current(n_steps: int, mean_pa: float = 50.0) -> np.ndarray:
    return np.random.default_rng(0).normal(mean_pa, 150.0, n_steps)


def spikes_in_brian2(folder: Path) -> tuple[int, int]:
    """Numbers of steps and of spikes of all cases in the folder, once all are found to be equal."""
    shown = run_python(folder, str(ROOT / "tools" / "export_peers.py"), "brian2", str(folder))
    found = re.fullmatch(r"\d+ neurons, (\d+) steps, (\d+) spikes; 0 neurons differ\n", shown)
    assert found, shown
    return int(found[1]), int(found[2])


@needs_brian2
@pytest.mark.slow
def test_random_neurons_spike_in_brian2_as_here(tmp_path):
    export_peers.make(tmp_path, n_neurons=25, n_steps=4000)
    steps, spikes = spikes_in_brian2(tmp_path)
    assert steps == 25 * 4000
    assert spikes > 500


@needs_brian2
def test_a_neuron_with_every_part_spikes_in_brian2_as_here(tmp_path):
    export_peers.write_case(tmp_path, 0, parameters_of(EVERY_PART), current(1500))
    assert spikes_in_brian2(tmp_path)[1] > 10


@needs_brian2
@pytest.mark.slow
def test_unusual_neurons_spike_in_brian2_as_here(tmp_path):
    partial = parameters_of(replace(EVERY_PART, reset_share=0.9, arp_ms=3.0, b=0.1))
    strong_pa = np.where(np.arange(600) % 100 < 10, 3000.0, 0.0)
    export_peers.write_case(tmp_path, 0, partial, strong_pa)
    spikes = np.load(tmp_path / "case_000.npz")["spikes"]
    assert (np.diff(np.flatnonzero(spikes)) == 1).sum() > 10  # within the refractory period
    forgets = replace(NEURON, tau_adaptation_ms=0.0, b=0.8, arp_ms=0.0, rest=1.5)
    forgets = replace(forgets, coupling=0.1, coupling_onset=0.5)  # a bend without width
    export_peers.write_case(tmp_path, 1, parameters_of(forgets), current(1000))
    spikes = np.load(tmp_path / "case_001.npz")["spikes"]
    assert spikes[0] == 1 and 50 < spikes.sum() < 500  # fires at rest
    assert spikes_in_brian2(tmp_path)[0] == 1600


@needs_brian2
@pytest.mark.slow
@pytest.mark.parametrize("noise", ["membrane", "escape"])
def test_trials_with_noise_agree_in_brian2(tmp_path, noise):
    of_escape = {"noise": 0.0, "escape_width": 0.15}
    neuron = EVERY_PART if noise == "membrane" else replace(EVERY_PART, **of_escape)
    current_pa = np.repeat(current(60, mean_pa=20.0), 25)
    ours = neuron.simulate(current_pa, n_trials=600)
    bs.export_neuron(neuron, tmp_path / "exported.py")
    np.save(tmp_path / "current.npy", current_pa)
    (tmp_path / "run.py").write_text(
        f"{NUMPY_TARGET}brian2.seed(0)\n"
        "import numpy as np\nimport exported\n"
        "np.save('spikes.npy', exported.simulate(np.load('current.npy'), n_trials=600))\n"
    )
    run_python(tmp_path, "run.py")
    theirs = np.load(tmp_path / "spikes.npy")
    assert theirs.shape == ours.shape
    assert ours.std(0).max() > 0.2
    # Two-sided, at 4 standard errors: of the spikes of a trial, and of their variance.
    counts = np.stack([x.sum(1, dtype=float) for x in (ours, theirs)])
    error = np.sqrt(counts.var(1, ddof=1).sum() / 600)
    assert abs(counts[0].mean() - counts[1].mean()) < 4 * error
    assert counts[0].var() == pytest.approx(counts[1].var(), rel=4 * np.sqrt(4 / 600))
    # The PSTH in bins of 5 ms: the mean square of z is 1, to 4 standard errors of a χ².
    bins = [x.reshape(600, -1, 10).sum(2, dtype=float) for x in (ours, theirs)]
    spread = np.add(*(x.var(0, ddof=1) for x in bins)) / 600
    seen = np.add(*(x.sum(0) for x in bins)) >= 20
    z = (bins[0].mean(0) - bins[1].mean(0))[seen] / np.sqrt(spread[seen])
    assert seen.sum() > 30
    assert (z**2).mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / seen.sum()))


@needs_brian2
@pytest.mark.slow
def test_the_page_runs_in_brian2(tmp_path):
    page = (ROOT / "docs" / "howto" / "export.md").read_text()
    (export,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    in_brian2 = next(x for x in re.findall(r"```py\n(.*?)```", page, re.DOTALL) if "n=10" in x)
    check = "assert spikes.sum() > 5 and trials.shape == (100, 2000) and len(neurons) == 10\n"
    (tmp_path / "page.py").write_text(NUMPY_TARGET + export + in_brian2 + check)
    run_python(tmp_path, "page.py")
    as_program = "import runpy; runpy.run_path('my_cell.py', run_name='__main__')"
    assert run_python(tmp_path, "-c", NUMPY_TARGET + as_program).startswith("spikes at [")


def test_parts_that_a_neuron_does_not_have_are_left_out(tmp_path):
    lif = replace(NEURON, b=0.0)
    bs.export_neuron(lif, tmp_path / "cell.py")
    bs.export_neuron(lif, tmp_path / "cell.nestml", simulator="nest")
    for name in ("cell.py", "cell.nestml"):
        text = (tmp_path / name).read_text()
        assert "tau_membrane" in text
        for part in ("adaptation_", "b_1", "current_1", "w_1", "reset_share", "coupling"):
            assert part not in text, (name, part)


def test_the_nestml_of_every_part_is_the_one_that_was_run_in_nest(tmp_path):
    """If the text has to change, run tools/export_peers.py in NEST before the file is updated."""
    bs.export_neuron(EVERY_PART, tmp_path / "every_part.nestml", simulator="nest")
    expected = Path(__file__).with_name("every_part.nestml")
    assert (tmp_path / "every_part.nestml").read_text() == expected.read_text()


def test_exported_modules_are_python_of_at_most_100_columns(tmp_path):
    """Whatever the cell is called."""
    named = replace(EVERY_PART, name='"""\nraise SystemExit("\\')
    bs.export_neuron(named, tmp_path / "exported.py")
    text = (tmp_path / "exported.py").read_text()
    compile(text, "exported.py", "exec")
    assert "\nraise" not in text
    assert max(map(len, text.splitlines())) <= 100
    bs.export_neuron(named, tmp_path / "exported.nestml", simulator="nest")
    assert "model fitted_____raise_SystemExit___:" in (tmp_path / "exported.nestml").read_text()


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="simulator: expected 'brian2' or 'nest', got 'neuron'"):
        bs.export_neuron(NEURON, tmp_path / "x", "neuron")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="b_2: expected a finite number, got nan"):
        bs.export_neuron(replace(NEURON, b_2=float("nan")), tmp_path / "x")
    assert not list(tmp_path.iterdir())
