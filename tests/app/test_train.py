"""`blockspike train` end to end: runs, sweeps, restarts, refusals."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from blockspike.app.trainer import read_checkpoint
from blockspike.files import read_json, write_json
from blockspike.runs.run import flatten
from blockspike.training.metrics_table import read_metrics
from killed_sweep import VOLATILE, start, wait_for
from tiers import mostly_slow

SMALL = (
    "data=nmnist_sample",
    "network.n_hidden=16",
    "data.n_steps=100",
    "data.dt_ms=4",
    "threads=1",
)
# fits are tested in test_fit.py and test_allen_fits.py
EXPERIMENTS = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "conf/experiment").iterdir()
    if "# blockspike train" in path.read_text()
)


def one_run(folder: Path) -> Path:
    (path,) = (folder / "outputs").rglob("result.json")
    return path.parent


def results(folder: Path) -> dict[str, dict]:
    """Result and learning curve of every run, without times."""
    found = {}
    for path in sorted((folder / "outputs").rglob("result.json")):
        row = read_json(path)
        curve = read_metrics(path.parent / "metrics.csv")
        curve = curve[[c for c in curve.columns if not c.startswith(VOLATILE)]]
        row = {k: v for k, v in row.items() if not k.startswith(VOLATILE)}
        key = str(path.parent.relative_to(folder / "outputs"))
        found[key] = {"row": row, "curve": {str(c): curve[c].tolist() for c in curve}}
    return found


def differences(one: dict, other: dict) -> dict[str, tuple]:
    """Differences of two nested dicts, to be shown by a failing test."""
    one, other = flatten(one), flatten(other)
    keys = sorted(one.keys() | other.keys())
    return {k: (one.get(k), other.get(k)) for k in keys if one.get(k) != other.get(k)}


def test_a_run_leaves_result_metrics_status_and_checkpoints(blockspike, tmp_path):
    blockspike("train", *SMALL, "trainer.max_epochs=2", "test_each_epoch=true")
    run = one_run(tmp_path)
    row = read_json(run / "result.json")
    status = read_json(run / "status.json")
    metrics = read_metrics(run / "metrics.csv")
    assert status["state"] == "done"
    assert status["config_hash"] == row["config_hash"]
    assert list(metrics["epoch"]) == [0, 1]
    assert row["data_set"] == "N-MNIST sample (1080 recordings)"
    assert row["val_accuracy"] == metrics["val/accuracy"].max()
    assert row["best_test_accuracy"] == metrics["test_each_epoch/accuracy"].max()
    assert row["best_test_accuracy"] >= row["test_accuracy"]
    assert metrics["lr"].tolist() == pytest.approx([row["optimizer.lr"]] * 2)
    assert metrics["train/grad_norm"].gt(0).all()
    assert metrics["time/forward_s"].gt(0).all()
    assert metrics["time/samples_per_s"].gt(0).all()
    kept = {p.name for p in (run / "checkpoints").iterdir()}
    assert kept == {"best.ckpt", "last.ckpt"}


def test_a_finished_run_is_skipped_and_collected_once(blockspike, tmp_path):
    blockspike("train", *SMALL, "trainer.max_epochs=1")
    run = one_run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    done = blockspike("train", *SMALL, "trainer.max_epochs=1")
    assert "finished, skipped" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    blockspike("collect")
    table = pd.read_parquet(tmp_path / "outputs" / "tables" / "runs.parquet")
    assert list(table["model.method"]) == ["fused"]
    status = read_json(run / "status.json")  # as if killed just after the result was written
    write_json(run / "status.json", {**status, "state": "running"})
    assert "1 done" in blockspike("status").stdout


@contextmanager
def crashing(monkeypatch, file: str, epoch: int) -> Iterator[None]:
    """Let the writing of a checkpoint fail after an epoch, from 1."""
    save = TorchCheckpointIO.save_checkpoint

    def crash(self, checkpoint, path, *args, **kwargs):
        if Path(path).name == file and checkpoint["epoch"] == epoch - 1:
            raise OSError("no space left")
        save(self, checkpoint, path, *args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(TorchCheckpointIO, "save_checkpoint", crash)
        yield


def kill_when(process: subprocess.Popen, condition) -> None:
    wait_for(condition, process)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_killed_run_resumes_to_identical_bits(blockspike, tmp_path, data_dir):
    args = (*SMALL, "trainer.max_epochs=4", "data.pixel_shift=1", "scheduler=cosine")
    args += (
        "callbacks=[reload_best,early_stopping]",
        "callbacks.reload_best.milestone=3",
    )
    args += ("network.dropout=0.2", "model.max_delay=3")
    args += ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1")
    args += ("training.rate_upper_hz=5", "training.rate_upper_factor=1e-3")
    args += ("network.init=kaiming_uniform", "network.n_hidden=[16,12]")
    args += ("optimizer=adamw", "training.lr_factors={beta:0.5,delays.*:2}")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed, data_dir, "train", *args)
    outputs = killed / "outputs"
    kill_when(
        process,
        lambda: any(len(p.read_text().splitlines()) > 2 for p in outputs.rglob("metrics.csv")),
    )
    assert not list(outputs.rglob("result.json"))

    again = subprocess.run(
        [sys.executable, "-m", "blockspike", "train", *args, f"data_dir={data_dir}"],
        cwd=killed, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "continued after epoch" in again.stdout
    assert start(whole, data_dir, "train", *args).wait() == 0
    assert not differences(results(killed), results(whole))


@pytest.mark.parametrize(
    "file", mostly_slow(["best.ckpt", "last.ckpt"], lambda x: x == "last.ckpt")
)
def test_a_crash_between_an_epochs_files_loses_nothing(blockspike, tmp_path, monkeypatch, file):
    args = ("train", *SMALL, "trainer.max_epochs=3", "scheduler=one_cycle", "monitor=val/loss")
    blockspike(*args, "output_dir=whole/outputs")

    with crashing(monkeypatch, file, 2):
        crashed = blockspike(*args, "output_dir=crashed/outputs", check=False)
    assert crashed.returncode == 2 and "no space left" in crashed.stderr
    (tmp_path / "crashed").rename(tmp_path / "moved")
    again = blockspike(*args, "output_dir=moved/outputs")
    assert "continued after epoch 1" in again.stdout
    assert not differences(results(tmp_path / "moved"), results(tmp_path / "whole"))


def test_another_configuration_in_the_same_folder_is_refused(blockspike, tmp_path):
    fixed = ("hydra.run.dir=outputs/here", "trainer.max_epochs=1", *SMALL)
    blockspike("train", *fixed)
    before = (tmp_path / "outputs" / "here" / "content.json").read_text()
    done = blockspike("train", *fixed, "optimizer.lr=0.5", check=False)
    assert done.returncode != 0
    assert "optimizer.lr: 0.001 → 0.5" in done.stderr
    assert (tmp_path / "outputs" / "here" / "content.json").read_text() == before


@pytest.mark.slow
def test_a_run_is_repeated_in_a_given_folder(blockspike, tmp_path):
    blockspike("train", *SMALL, "trainer.max_epochs=1")
    again = blockspike("train", *SMALL, "trainer.max_epochs=1", "hydra.run.dir=outputs/again")
    assert "skipped" not in again.stdout
    assert len(list(tmp_path.rglob("result.json"))) == 2


@pytest.mark.slow
def test_a_folder_in_use_is_refused(blockspike, tmp_path, data_dir):
    args = (*SMALL, "trainer.max_epochs=1000")
    process = start(tmp_path, data_dir, "train", *args)
    try:
        wait_for(lambda: list((tmp_path / "outputs").rglob("last.ckpt")), process)
        done = blockspike("train", *args, check=False)
        assert done.returncode != 0
        assert f"already running as process {process.pid}" in done.stderr
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "network.n_hiden=3",
            ("network.n_hiden",),
        ),
        (
            "model=adlif model.arp_ms=5",
            ("model.arp_ms",),
        ),
        (
            "model=se_adlif model.method=blocks",
            ("method: expected one of standard, fused, got 'blocks'",),
        ),
        ("network.n_hidden=many", ("n_hidden",)),
        ("network.n_hidden=[8,8,8]", ("n_hidden, n_layers: expected a number for each",)),
        ("data=mnist", ("data/mnist", "nmnist_sample")),
        (
            "model=relu",
            ("model/relu", "adlif blocks c_silif"),
        ),
        (
            "data.path=nowhere.h5 data.raw=nowhere",
            ("nowhere.h5", "data=nmnist_sample comes with blockspike"),
        ),
        ("model.surrogate=relu", ("model.surrogate", "relu", "boxcar")),
        ("model.method=magic", ("method", "magic", "fused")),
        ("model.arp_ms=-1", ("arp: expected", "-1")),
        ("model.tau_membrane_ms=1e9", ("tau_membrane_ms: expected ms", "1e+09")),
        ("data.batch_size=0", ("batch_size", "0", "at least 1")),
        ("trainer.max_epoch=3", ("max_epoch",)),
        (
            "callbacks=early_stopping callbacks.early_stopping.monitor=test/loss",
            ("callbacks.early_stopping.monitor: expected val/accuracy or", "test/loss"),
        ),
        ("callbacks=[early_stopping,nothing]", ("callbacks/nothing",)),
        ("callbacks=nothing", ("callbacks/nothing", "early_stopping")),
        ("seed=-1", ("-1 is not in bounds",)),
        ("monitor=val/acc", ("monitor: expected val/accuracy or val/loss", "val/acc")),
        ("monitor=train/accuracy", ("monitor: expected val/accuracy", "train/accuracy")),
        ("monitor=test_each_epoch/accuracy test_each_epoch=true", ("monitor: expected", "test_")),
        (
            "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping "
            "+callbacks.stop.monitor=test_each_epoch/loss",
            ("callbacks.stop.monitor: expected", "test_each_epoch/loss"),
        ),
        (
            "training.lr_factors={alpha:1}",
            ("lr_factors.alpha: expected", "layers.0.recurrent_weight"),
        ),
        ("training.rate_lower_hz=2", ("rate_lower_hz, rate_lower_factor: expected", "2.0 and 0")),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(blockspike, tmp_path, override, words):
    done = blockspike("train", *SMALL[:1], *override.split(), check=False)
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    for word in words:
        assert word in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "optimizer._target_=torch.optim.SGD",
            "optimizer: got an unexpected keyword argument 'eps'",
        ),
        ("optimizer.lr=-1", "Invalid learning rate"),
        ("+callbacks.mine=true", "callbacks.mine: expected a node with a _target_, got True"),
        ("+callbacks.mine.patience=3", "callbacks.mine: expected a node with a _target_, got {"),
        (
            "scheduler=step ~scheduler.step_size",
            "missing 1 required positional argument: 'step_size'",
        ),
        (
            "+callbacks.reload._target_=blockspike.training.callbacks.ReloadBestAtMilestone "
            "+callbacks.reload.mile=3",
            "unexpected keyword argument 'mile'",
        ),
    ],
)
def test_an_unknown_argument_of_an_object_is_named_in_one_line(blockspike, override, words):
    done = blockspike("train", *SMALL, "trainer.max_epochs=1", *override.split(), check=False)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and words in line


@pytest.mark.slow
def test_a_plateau_scheduler_gets_the_validation_loss(blockspike, tmp_path):
    plateau = "scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"
    blockspike(
        "train", *SMALL, "trainer.max_epochs=3", "scheduler=step", "~scheduler.step_size",
        "~scheduler.gamma", plateau, "+scheduler.patience=0", "+scheduler.threshold=1e9",
        "+scheduler.threshold_mode=abs",
    )  # fmt: skip
    (scheduler,) = read_checkpoint(one_run(tmp_path) / "checkpoints/last.ckpt")["lr_schedulers"]
    assert scheduler["_last_lr"][0] < 1e-3


def test_help_lists_what_can_be_chosen(blockspike):
    shown = blockspike("train", "--help").stdout
    assert "\nmodel: adlif, blocks, c_silif, ef_adlif, fused, glif, se_adlif, standard\n" in shown


def test_unknown_command_is_named(blockspike):
    done = blockspike("trian", check=False)
    assert done.returncode == 2 and "trian" in done.stderr


@pytest.mark.parametrize(
    "experiment", mostly_slow(EXPERIMENTS, lambda x: x in ("demo", "paper_shd", "shd"))
)
def test_every_experiment_runs(blockspike, tmp_path, data_dir, experiment):
    is_nmnist = experiment in ("demo", "nmnist", "paper_nmnist")
    data = "nmnist_sample" if is_nmnist else "hd_lauscher_sample"
    blockspike(
        "train", f"experiment={experiment}", f"data={data}", "debug=fast", "network.n_hidden=8"
    )
    assert read_json(one_run(tmp_path) / "status.json")["state"] == "done"


@pytest.mark.parametrize(
    "logger", mostly_slow(["wandb", "tensorboard", "many", "none"], lambda x: x[0] in "tn")
)
def test_loggers(blockspike, tmp_path, logger):
    blockspike("train", *SMALL, "debug=fast", f"logger={logger}", "model.recurrent=false")
    run = one_run(tmp_path)
    assert bool(list(run.rglob("*.wandb"))) == (logger in ("wandb", "many"))
    assert bool(list(run.rglob("events.out.*"))) == (logger in ("tensorboard", "many"))


@pytest.mark.parametrize(
    "optimizer", mostly_slow(["adamw", "radam", "sgd"], lambda x: x == "adamw")
)
def test_optimisers(blockspike, tmp_path, optimizer):
    blockspike("train", *SMALL, "debug=fast", f"optimizer={optimizer}")
    assert optimizer in read_json(one_run(tmp_path) / "result.json")["optimizer._target_"].lower()


@pytest.mark.parametrize("algorithm", mostly_slow(["norm", "value"], lambda x: x == "value"))
def test_gradients_are_clipped(blockspike, tmp_path, algorithm):
    args = ("train", *SMALL, "optimizer=sgd", "optimizer.momentum=0", "debug=fast")
    args += ("trainer.limit_train_batches=1", "trainer.gradient_clip_val=1e-3")
    weights = []
    for lr in ("0", "1"):
        folder = f"output_dir={lr}/outputs"
        blockspike(
            *args, f"trainer.gradient_clip_algorithm={algorithm}", f"optimizer.lr={lr}", folder
        )
        state = read_checkpoint(one_run(tmp_path / lr) / "checkpoints" / "last.ckpt")["state_dict"]
        weights.append(torch.cat([x.double().flatten() for x in state.values()]))
    step = weights[1] - weights[0]
    largest = step.norm() if algorithm == "norm" else step.abs().max()
    assert float(largest) == pytest.approx(1e-3, rel=1e-3)


def test_gradients_of_several_batches_make_a_step(blockspike, tmp_path):
    blockspike("train", *SMALL, "debug=fast", "trainer.accumulate_grad_batches=2")
    run = one_run(tmp_path)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 1


def test_a_run_in_float64_resumes_and_is_extended_with_all_digits(blockspike, tmp_path):
    args = ("train", *SMALL, "trainer.precision=64-true", "trainer.limit_train_batches=2")
    blockspike(*args, "trainer.max_epochs=2")
    blockspike(*args, "trainer.max_epochs=1")
    (first,) = (tmp_path / "outputs/default").glob("*max_epochs=1*/seed=0")
    blockspike(*args, "trainer.max_epochs=2", f"resume_from={first}", "experiment_name=extended")
    runs = [
        next((tmp_path / f"outputs/{x}").glob("*max_epochs=2*/seed=0"))
        for x in ("default", "extended")
    ]
    weights = [read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"] for run in runs]
    assert weights[0]["network.readout.weight"].dtype == torch.float64
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_resumed_run_keeps_its_patience(blockspike, tmp_path, monkeypatch):
    """Without learning, the first epoch stays the best: the third is the last."""
    args = ("train", *SMALL, "trainer.max_epochs=5", "optimizer=adamw", "optimizer.lr=1e-12")
    args += ("callbacks=early_stopping", "callbacks.early_stopping.patience=2")
    blockspike(*args)
    whole, run = results(tmp_path), one_run(tmp_path)
    assert len(read_metrics(run / "metrics.csv")) == 3
    (run / "result.json").unlink()  # as if killed after the last epoch
    assert "continued after epoch 3" in blockspike(*args).stdout
    assert not differences(results(tmp_path), whole)
    args += ("output_dir=again/outputs",)
    with crashing(monkeypatch, "last.ckpt", 3):
        blockspike(*args, check=False)
    assert "continued after epoch 2" in blockspike(*args).stdout
    assert not differences(results(tmp_path / "again"), whole)


def test_a_run_has_tags_and_a_log(blockspike, tmp_path):
    args = ("train", *SMALL, "trainer.max_epochs=2", "logger=tensorboard")
    blockspike(*args, "tags=[pilot,figure 2]")
    run = one_run(tmp_path)
    assert "tags" not in run.parent.name
    assert read_json(run / "result.json")["tags"] == ["pilot", "figure 2"]
    assert "tags" not in read_json(run / "content.json")
    (run / "result.json").unlink()
    blockspike(*args)  # the same run
    lines = (run / "train.log").read_text().splitlines()
    words = (
        "train data=",
        "epoch 1/2",
        "epoch 2/2",
        "done",
        "train data=",
        "continued after epoch 2",
    )
    assert [word for line in lines for word in {*words} if word in line][:6] == list(words)
    assert lines[-1].endswith("done") and "test accuracy" in lines[-2]
    assert "tags" not in read_json(run / "result.json")


def test_the_network_is_summarised(blockspike):
    done = blockspike("train", *SMALL, "debug=fast", "callbacks=model_summary")
    assert "network.layers.1" in done.stdout and "Trainable params" in done.stdout


def test_evaluate_and_figures(blockspike, tmp_path):
    blockspike("train", *SMALL, "trainer.max_epochs=1")
    run = one_run(tmp_path)
    not_yet = blockspike("plot", "run", str(run), check=False)
    assert not_yet.returncode != 0
    assert "blockspike evaluate" in not_yet.stderr
    done = blockspike("evaluate", str(run))
    assert " of 80 (model chosen on validation); linear model" in done.stdout
    scores = read_json(run / "evaluation.json")
    row = read_json(run / "result.json")
    assert scores["test_accuracy"] == pytest.approx(row["test_accuracy"])
    assert sum(map(sum, scores["confusion"])) == scores["n_test"] == 80
    write_json(run / "result.json", row | {"test_accuracy": row["test_accuracy"] - 0.05})
    with pytest.warns(UserWarning, match="% when the run ended: the code"):
        blockspike("evaluate", str(run))
    write_json(run / "result.json", row)
    table = pd.read_csv(run / "confusion.csv")  # of the test after the training
    assert table.filter(like="predicted_").to_numpy().tolist() == scores["confusion"]
    blockspike("plot", "run", str(run))
    made = {p.name for p in (run / "figures").iterdir()}
    assert made == {
        f"{n}.{s}" for n in ("learning_curve", "raster", "confusion") for s in ("png", "svg")
    }
    (run / "result.json").rename(run / "hidden")
    unfinished = blockspike("evaluate", str(run), check=False)
    assert "run: expected a finished run in" in unfinished.stderr
    nothing = blockspike("evaluate", "nothing", check=False)
    assert nothing.returncode != 0
    assert "nothing" in nothing.stderr


def test_a_run_resumes_after_its_last_epoch_whatever_was_chosen(blockspike, tmp_path):
    """The first epoch is the best here, yet an interrupted run resumes after the last one."""
    blockspike("train", *SMALL, "trainer.max_epochs=3", "optimizer.lr=100")
    run = one_run(tmp_path)
    assert read_json(run / "result.json")["chosen_epoch"] < 3
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["epoch"] == 2
