"""`blockspike fit`: from file to figure, restarts, failures, evaluation."""

import json
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from made_nwb import make_nwb2_of, membrane_mv, noise_pa, stimulus_and_response

from blockspike.app.evaluate_neuron import evaluate_neuron
from blockspike.data.limits import read_npz
from blockspike.data.recordings import Recording
from blockspike.figures.cell_traces import cells_of
from blockspike.files import read_json, write_npz
from blockspike.fitting.fitted_neuron import FittedNeuron, load_neuron
from blockspike.fitting.parameters import NeuronParameters, simulate
from blockspike.fitting.scores import predictions_of
from blockspike.fitting.synthetic_cells import SyntheticCells
from blockspike.training.metrics_table import read_metrics
from made_electrode import cell_behind, write_cell
from made_recordings import write_recording
from tiers import mostly_slow

QUICK = ("trainer.max_epochs=30", "population.n_starts=16", "population.arp_ms=2", "threads=1")
ONE_CELL = ("experiment=recovery", "data.n_cells=1", "data.duration_s=2")
BY_LIKELIHOOD = (
    "trainer.max_epochs=30", "population=gif", "fit=likelihood", "population.n_starts=8",
    "n_bootstrap=3", "threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def cells() -> list[Recording]:
    return SyntheticCells(n_cells=2, duration_s=5.0, trial_noise=0.0).cells()


def test_a_recording_is_fitted_from_file_to_figure(blockspike, tmp_path, cells):
    write_recording(cells[0], tmp_path / "my_cell.npz")
    arguments = ("fit", "data.path=my_cell.npz", *QUICK)
    done = blockspike(*arguments)
    (result,) = (tmp_path / "outputs" / "fit" / "my_cell").rglob("result.json")
    run, row = result.parent, read_json(result)
    assert "median normalised ETV" in done.stdout and "refractory" not in done.stderr
    assert row["data_set"] == "my_cell" and row["n_cells"] == 1
    assert (run / "figures" / "recording.png").is_file()
    table = pd.read_csv(run / "fits.csv")
    assert table["test_etv_15ms"][0] == pytest.approx(row["test_etv_15ms_median"])
    neuron = load_neuron(run / "fits" / "my_cell.json")
    assert neuron.gain_per_pa == pytest.approx(table["gain_per_pa"][0])
    # The neuron's file alone reproduces the fit, on the whole recording.
    current = cells[0].current(neuron.dt_ms)[0]
    spikes = neuron.simulate(current, n_trials=20).mean(0)
    first = round(0.6 * len(current))
    assert spikes[:first].sum() / 3 == pytest.approx(table["train_rate_hz"][0], abs=0.7)
    assert neuron.noise == pytest.approx(table["noise"][0]) and neuron.noise > 0
    assert table["test_etv_15ms"][0] > table["test_trial_etv_15ms"][0] > 0

    page = run / "report.html"
    done = blockspike("report", str(run))
    assert f"{page.relative_to(tmp_path)}: " in done.stdout and "1 cell" in done.stdout
    assert "my_cell: fitted neuron" in page.read_text()
    assert not (tmp_path / "outputs" / "report.html").exists()

    assert "finished, skipped" in blockspike(*arguments).stdout
    shown = blockspike(
        "evaluate", str(run / "fits" / "my_cell.json"), "--recording=my_cell.npz"
    ).stdout
    assert "my_cell on my_cell, stimulus 0: normalised ETV" in shown
    scores = json.loads((run / "fits" / "my_cell_on_my_cell.json").read_text())
    assert set(scores) == {"stimulus 0"}
    other = blockspike(
        "evaluate", str(run / 'fits' / 'my_cell.json'), "--recording=my_cell.npz",
        "--stimulus=noise 9", check=False,
    )  # fmt: skip
    assert other.returncode == 2
    assert "expected a stimulus of 'stimulus 0', got 'noise 9'" in other.stderr
    assert (run / "fits" / "my_cell_on_my_cell.png").is_file()


@pytest.mark.slow
def test_a_fit_without_noise_predicts_one_train(blockspike, tmp_path, cells):
    write_recording(cells[0], tmp_path / "my_cell.npz")
    blockspike("fit", "data.path=my_cell.npz", "population.n_trials=0", *QUICK)
    (path,) = (tmp_path / "outputs").rglob("fits.csv")
    row = pd.read_csv(path).iloc[0]
    assert row["noise"] == 0
    assert row["test_etv_15ms"] == row["test_trial_etv_15ms"] == row["test_noiseless_etv_15ms"] > 0
    assert load_neuron(path.parent / "fits" / "my_cell.json").noise == 0


def test_a_fit_by_the_likelihood_from_file_to_page(blockspike, tmp_path, cells):
    write_recording(cells[0], tmp_path / "my_cell.npz")
    done = blockspike("fit", "data.path=my_cell.npz", *BY_LIKELIHOOD)
    assert "median normalised ETV" in done.stdout
    (run,) = (p.parent for p in (tmp_path / "outputs").rglob("result.json"))
    row = pd.read_csv(run / "fits.csv").iloc[0]
    neuron = load_neuron(run / "fits" / "my_cell.json")
    assert neuron.escape_width == pytest.approx(row["escape_width"]) and neuron.escape_width > 0
    assert neuron.noise == 0 and neuron.simulate([100.0] * 2000, 5).std(0).any()
    assert row["test_etv_15ms"] > row["test_trial_etv_15ms"] > 0
    assert row["train_bits_per_spike"] > 1 and row["intervals_from"] == "trials"
    assert row["rheobase_pa_low"] < row["rheobase_pa"] < row["rheobase_pa_high"]
    blockspike("report", str(run))
    assert "escape width" in (run / "report.html").read_text()


def test_a_fit_to_spikes_and_compensated_voltage(blockspike, tmp_path):
    cell = cell_behind(40.0, 0.3)
    write_cell(cell, tmp_path / "my_cell.npz")
    few = ("population=gif", "population.n_starts=4", "trainer.max_epochs=15", "threads=1")
    options = (*few, "fit=likelihood", "data.compensation=aec", "fit.voltage_weight=1")
    blockspike("fit", "data.path=my_cell.npz", *options, "n_bootstrap=4")
    (run,) = (p.parent for p in (tmp_path / "outputs").rglob("result.json"))
    row = pd.read_csv(run / "fits.csv").iloc[0]
    assert row["compensated_mohm"] == pytest.approx(40, rel=0.1)
    assert row["compensated_tau_ms"] == pytest.approx(0.3, rel=0.2)
    assert 0 < row["compensated_mohm_se"] < 2 and abs(row["electrode_mohm"]) < 15
    assert 0.5 < row["test_voltage_rms_mv"] < 3
    assert row["intervals_from"] == "simulated trials and blocks of the voltage"
    assert row["tau_membrane_ms_low"] < row["tau_membrane_ms"] < row["tau_membrane_ms_high"]
    blockspike("report", str(run))
    assert "without the electrode’s share" in (run / "report.html").read_text()
    # Another voltage is another recording.
    (run / "result.json").unlink()
    write_cell(cell._replace(voltage_mv=cell.voltage_mv + 1), tmp_path / "my_cell.npz")
    done = blockspike("fit", "data.path=my_cell.npz", *options, "n_bootstrap=4", check=False)
    assert done.returncode == 2 and "the data have changed" in done.stderr


@pytest.mark.parametrize(
    "optimizer",
    mostly_slow(["adamw optimizer.weight_decay=0", "sgd", "radam"], lambda x: x == "sgd"),
)
def test_a_fit_descends_by_any_optimiser(blockspike, tmp_path, optimizer):
    few = ("trainer.max_epochs=3", "population.n_starts=2", "n_bootstrap=0", "threads=1")
    done = blockspike(
        "fit", *ONE_CELL, *few, *f"optimizer={optimizer}".split(), "population.arp_ms=60"
    )
    assert "of the recorded intervals are shorter than the absolute" in done.stderr
    (metrics,) = (tmp_path / "outputs").rglob("metrics.csv")
    assert len(set(read_metrics(metrics)["train/loss"])) == 3


def test_the_published_neurons_are_not_fitted_by_the_likelihood(blockspike, tmp_path, cells):
    write_recording(cells[0], tmp_path / "my_cell.npz")
    arguments = ("population=paper", "fit=likelihood")
    done = blockspike("fit", "data.path=my_cell.npz", *arguments, check=False)
    assert "fit.loss: expected a distance for this population" in done.stderr


def test_other_cells_finish_when_one_is_broken(blockspike, tmp_path, cells):
    (tmp_path / "cells").mkdir()
    cells = [replace(recording, name=f"00{k}") for k, recording in enumerate(cells)]
    for recording in cells:
        write_recording(recording, tmp_path / "cells" / f"{recording.name}.npz")
    (tmp_path / "cells" / "torn.npz").write_bytes(b"PK\x03\x04")
    done = blockspike("fit", "data.path=cells", *QUICK)
    (run,) = (p.parent for p in (tmp_path / "outputs").rglob("result.json"))
    assert "left out: " in done.stderr and "torn.npz" in done.stderr
    assert list(json.loads((run / "failed.json").read_text())) == ["torn"]
    table = pd.read_csv(run / "fits.csv", converters={"cell": str})
    assert list(table["cell"]) == [r.name for r in cells]
    assert read_json(run / "result.json")["n_failed"] == 1
    _check_traces(run, cells)
    blockspike("report", str(run))
    html = (run / "report.html").read_text()
    assert "torn.npz" in html and all(f">{r.name}</a>" in html for r in cells)
    _check_refusals(blockspike, run)


def _check_traces(run, cells):
    """The traces of every cell are those of its recording and of its fitted neuron."""
    stored = cells_of(read_npz(run / "traces.npz"))
    table = pd.read_csv(run / "fits.csv")
    for cell, recording, (_, row) in zip(stored, cells, table.iterrows(), strict=True):
        assert cell.name == recording.name and cell.titles == ["stimulus 0, 3–5 s"]
        assert cell.etv_15ms[0] == pytest.approx(row["test_etv_15ms"])
        assert cell.voltage_mv is None and not cell.are_steps
        first = round(3000 / cell.dt_ms)
        current = recording.current(cell.dt_ms)
        np.testing.assert_allclose(cell.current_pa[0], current[0, first:], rtol=1e-3, atol=1e-2)
        trains = recording.spike_trains(0, cell.dt_ms)[:, first:]
        assert np.array_equal(cell.recorded[:, 1:], np.argwhere(trains))
        neuron = load_neuron(run / "fits" / f"{cell.name}.json")
        trials = neuron.simulate(current[0], 100)[:, first:].mean()
        assert cell.model_hz.mean() == pytest.approx(trials * 1000 / cell.dt_ms, rel=0.1)
        assert cell.n_model == 10 and len(cell.model) / 10 == pytest.approx(
            row["test_rate_hz"] * 2, rel=0.2
        )
        fired = cell.membrane > cell.threshold  # of the neuron without noise
        assert fired.sum() == pytest.approx(neuron.simulate(current[0])[first:].sum(), abs=2)
        trained, tested = cell.rates
        assert (trained[3], tested[3]) == (0, 1)
        assert tested[1:3] == pytest.approx(row[["test_recorded_hz", "test_rate_hz"]].tolist())
        assert trained[1:3] == pytest.approx(row[["train_recorded_hz", "train_rate_hz"]].tolist())
        assert trained[0] == pytest.approx(current[0, :first].mean(), abs=0.1)


def _check_refusals(blockspike, run):
    """A fit of an older version, or without a result, is refused in one line."""
    older = {"dt_ms": np.array(0.5), "cell0_name": np.array("a"), "cell0_trains": np.zeros((2, 9))}
    write_npz(run / "traces.npz", older)
    for command in (["report"], ["plot", "run"]):
        done = blockspike(*command, str(run), check=False)
        assert done.returncode == 2 and "older versions; fit again" in done.stderr
    (run / "result.json").unlink()
    done = blockspike("report", str(run), check=False)
    assert done.returncode == 2 and "expected a finished run" in done.stderr


def test_a_picture_of_many_stimuli_is_no_wider(blockspike, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "steps.npz", current_pa=rng.normal(100, 50, (30, 4000)), dt_ms=0.5,
        spike_times_s=np.linspace(0.1, 1.9, 30), spike_stimulus=np.arange(30), n_repeats=1,
    )  # fmt: skip
    neuron = FittedNeuron("cell", 10.0, 100.0, 0.2, 0.01, 0.0, arp_ms=2.0, dt_ms=0.5)
    neuron.save(tmp_path / "cell.json")
    done = blockspike("evaluate", "cell.json", "--recording=steps.npz")
    assert done.stdout.count(": ETV ") == 30
    assert len(json.loads((tmp_path / "cell_on_steps.json").read_text())) == 30
    height, width, _ = plt.imread(tmp_path / "cell_on_steps.png").shape
    assert width < 3000 and height < 1200


@pytest.mark.parametrize("options", [QUICK, BY_LIKELIHOOD], ids=["distance", "likelihood"])
def test_an_interrupted_fit_resumes_to_identical_bits(blockspike, tmp_path, cells, options):
    write_recording(cells[0], tmp_path / "my_cell.npz")
    arguments = ("fit", "data.path=my_cell.npz", *options)
    blockspike(*arguments, "output_dir=whole")
    (whole,) = (tmp_path / "whole").rglob("fits.csv")
    (run,) = (p.parent for p in (tmp_path / "whole").rglob("result.json"))
    for name in ("result.json", "fits.csv"):  # as if killed after its last checkpoint, epoch 20
        (run / name).rename(tmp_path / name)
    before, first = pd.read_csv(tmp_path / "fits.csv"), read_metrics(run / "metrics.csv")
    blockspike(*arguments, "output_dir=whole")
    pd.testing.assert_frame_equal(before, pd.read_csv(whole))
    # Its seconds are those of all epochs, not only of the last process.
    seconds = read_metrics(run / "metrics.csv")["time/epoch_s"]
    row = read_json(run / "result.json")
    assert len(seconds) == 30 and row["fit_s"] == pytest.approx(seconds.sum())
    # The first 20 are not fitted again.
    before_s = first["time/epoch_s"]
    assert list(seconds[:20]) == list(before_s[:20]) and list(seconds) != list(before_s)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data.path=nothing.npz",), "expected a recording"),
        (("data.path=text.npz",), "text.npz"),
        (("data.path=text.npz", "data.scaling=best"), "scaling"),
        (("data.path=text.npz", "data.train_s=[[0,1]]"), "both or neither"),
        (("data.path=x.npz", "population.surrogate=x"), "expected a recording"),
        (("data=nmnist_sample",), "data: expected recordings, got events"),
        ((*ONE_CELL, "fit=likelihood", "optimizer=adam"), "optimizer: expected bfgs"),
        ((*ONE_CELL, "fit.voltage_weight=1"), "voltage_weight: expected a voltage between spikes"),
        ((*ONE_CELL, "optimizer=bfgs"), "optimizer: expected bfgs"),
        ((*ONE_CELL, "optimizer=adamw"), "optimizer.weight_decay: expected 0 for a fit"),
        ((*ONE_CELL, "trainer.gradient_clip_val=1"), "expected null for a fit"),
        ((*ONE_CELL, "trainer.accumulate_grad_batches=2"), "expected 1 for a fit"),
        ((*ONE_CELL, "callbacks=early_stopping"), "callbacks: expected fit.patience"),
    ],
)
def test_bad_input_is_one_line(blockspike, tmp_path, arguments, message):
    (tmp_path / "text.npz").write_text("not an archive")
    done = blockspike("fit", *arguments, check=False)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_events_are_not_fitted_and_recordings_not_classified(blockspike, tmp_path):
    done = blockspike("train", "data=recordings", "data.path=x.npz", check=False)
    assert done.returncode == 2 and "`blockspike fit`" in done.stderr


def test_prepare_checks_recordings(blockspike, tmp_path, cells):
    write_recording(cells[0], tmp_path / "my_cell.npz")
    shown = blockspike("prepare", "data=recordings", "data.path=my_cell.npz").stdout
    assert "my_cell: 1 cell can be fitted" in shown


def test_a_warning_is_one_line_without_the_code_that_gave_it(tmp_path):
    current_pa = np.random.default_rng(0).normal(0, 100, 20_000)
    voltage_mv = np.full((1, 20_000), 10.0)
    voltage_mv[:, 1000::1000] = 90.0
    np.savez(tmp_path / "cell.npz", current_pa=current_pa, voltage_mv=voltage_mv, dt_ms=0.1)
    # pytest keeps warnings to itself, so this needs a process of its own.
    command = [sys.executable, "-m", "blockspike", "prepare", "data=recordings"]
    done = subprocess.run(
        [*command, "data.path=cell.npz"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert any(line.startswith("warning: cell.npz") for line in done.stderr.splitlines())
    assert "UserWarning" not in done.stderr and ".py" not in done.stderr


@pytest.mark.slow
def test_synthetic_cells_are_fitted_and_drawn(blockspike, tmp_path):
    quick = ("data.n_cells=2", "data.duration_s=3", "data.dt_ms=0.5", "population.n_starts=8")
    blockspike("fit", "experiment=recovery", *quick, "trainer.max_epochs=4", "threads=1")
    (result,) = (tmp_path / "outputs" / "recovery").rglob("result.json")
    row = read_json(result)
    assert row["data_set"] == "2 synthetic cells" and row["n_cells"] == 2
    blockspike("plot", "run", str(result.parent))


def test_a_test_current_with_its_own_scale_is_simulated_with_it():
    data = SyntheticCells(
        n_cells=2, duration_s=4.0, dt_ms=0.5, scaling="maximum", own_test_scale=True
    )
    data.setup()
    assert data.scale_pa[1] != data.test_scale_pa[1]
    names = ("tau_membrane_ms", "tau_adaptation_ms", "b", "gain", "rest", "noise", "arp_ms")
    values = (15.0, 120.0, 0.2, 300.0, 0.5, 0.0, 2.0)
    parameters = NeuronParameters(
        **{
            name: torch.full((2,), value, dtype=torch.float64)
            for name, value in zip(names, values, strict=True)
        }
    )
    neurons = [
        FittedNeuron.of(parameters, cell, name, float(data.scale_pa[cell]), 0.5)
        for cell, name in enumerate(data.names)
    ]
    predicted = predictions_of(neurons, data.test, data.scale_pa)
    expected = simulate(parameters, data.test.current, 0.5)[data.test.first[0][0] :]
    for cell in range(2):
        assert predicted[cell][0].noiseless.sum() > 3
        assert np.array_equal(predicted[cell][0].noiseless, expected[:, 0, cell].numpy())


def test_a_neuron_is_tested_on_one_electrode_of_several(tmp_path):
    pytest.importorskip("pynwb")
    voltage = membrane_mv([5.0, 20.0, 41.0], 2500)
    series = [
        *stimulus_and_response("0", noise_pa(1, 2500), voltage, "soma"),
        *stimulus_and_response("d_0", noise_pa(2, 2500), voltage, "dend"),
    ]
    path = make_nwb2_of(tmp_path / "a.nwb", series)
    neuron = FittedNeuron("x", 20.0, 100.0, 0.1, 0.01, 0.0, 2.0, 0.1)
    neuron.save(tmp_path / "x.json")
    with pytest.raises(ValueError, match="electrode: expected 'dend'"):
        evaluate_neuron(tmp_path / "x.json", path, None)
    assert list(evaluate_neuron(tmp_path / "x.json", path, None, "soma")) == ["in_0"]
    assert (tmp_path / "x_on_a_soma.json").is_file()
    evaluate_neuron(tmp_path / "x.json", path, "in_0", "soma")
    scores = json.loads((tmp_path / "x_on_a_soma_in_0.json").read_text())
    assert scores["in_0"]["reliability_etv_15ms"] is None  # NaN: there is one trial
