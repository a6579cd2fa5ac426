from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from made_data import make_shd
from omegaconf import OmegaConf

from blockspike.app.build import build_data
from blockspike.data.datamodule import EventDataModule, stratified_subset
from blockspike.data.loader import EpochSampler
from blockspike.data.nmnist import NMNISTDataModule, parse_events
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.data.shd import SHDDataModule
from blockspike.files import SAMPLES


@pytest.fixture(scope="module")
def prepared(nmnist_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared") / "nmnist.h5"
    NMNISTDataModule(path, raw=nmnist_folder).prepare()
    return path


def opened(path, **changes) -> NMNISTDataModule:
    module = NMNISTDataModule(path, **changes)
    module.setup()
    return module


def train_order(module: EventDataModule, epoch: int) -> list[int]:
    """Training samples in the order of an epoch, identified by their spikes."""
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(epoch)
    return [hash(batch.dense().numpy().tobytes()) for batch, _ in loader]


def test_batches_equal_a_naive_binning(prepared, nmnist_folder):
    module = opened(prepared, dt_ms=4.0, n_steps=60, batch_size=7)
    files = sorted((nmnist_folder / "Test").glob("*/*.bin"))
    seen = 0
    for batch, labels in module.test_dataloader():
        dense = batch.dense().numpy()
        for b, label in enumerate(labels):
            x, y, _, t_us = parse_events(files[seen].read_bytes(), "")
            expected = np.zeros((60, 1156), np.float32)
            step = t_us // 4000
            inside = step < 60
            np.add.at(expected, (step[inside], y[inside].astype(int) * 34 + x[inside]), 1)
            assert (dense[:, b] == expected).all()
            assert label == int(files[seen].parent.name)
            seen += 1
    assert seen == len(files)


def test_sizes_of_the_data_set(prepared):
    module = opened(prepared)
    assert (module.n_inputs, module.n_classes, module.dt_ms, module.n_steps) == (1156, 10, 1.0, 400)
    assert module.name == "N-MNIST sample (100 recordings)"


def test_incomplete_last_batch_is_kept(prepared):
    module = opened(prepared, batch_size=64)
    assert [len(labels) for _, labels in module.train_dataloader()] == [64, 6]
    assert len(module.train_dataloader()) == 2


def test_batches_to_overfit_are_of_mixed_classes(prepared):
    module = opened(prepared)
    assert (np.diff(module.train.label[module.train_indices]) >= 0).all()
    lightning: Any = SimpleNamespace(world_size=1, global_rank=0, overfit_batches=3)
    module.trainer = lightning
    indices = module.train_dataloader().dataset.indices  # pyright: ignore
    assert sorted(indices) == sorted(module.train_indices)
    assert len(set(module.train.label[indices[:20]])) > 3


def test_validation_is_a_stratified_part_of_training(prepared):
    module = opened(prepared, validation_fraction=0.25)
    everything = np.concatenate([module.train_indices, module.val_indices])
    assert sorted(everything) == list(range(80))
    assert (np.bincount(module.train.label[module.val_indices]) == 2).all()


def test_test_recordings_are_never_trained_or_validated_on(prepared):
    module = opened(prepared)
    spikes = {}
    for part in ("train", "val", "test"):
        loader = getattr(module, f"{part}_dataloader")()
        spikes[part] = {
            batch.dense()[:, b].numpy().tobytes()
            for batch, _ in loader
            for b in range(batch.batch_size)
        }
    assert len(spikes["train"]) == 70 and len(spikes["val"]) == 10 and len(spikes["test"]) == 20
    assert not spikes["test"] & (spikes["train"] | spikes["val"])
    assert not spikes["train"] & spikes["val"]


def test_the_split_is_a_function_of_the_seed(prepared):
    first, other = opened(prepared, seed=1), opened(prepared, seed=2)
    np.random.seed(77)
    torch.manual_seed(77)
    again = opened(prepared, seed=1)
    again.setup("test")
    assert np.array_equal(first.val_indices, again.val_indices)
    assert not np.array_equal(first.val_indices, other.val_indices)


def test_the_order_is_a_function_of_seed_and_epoch(prepared):
    module, again = opened(prepared, seed=1, batch_size=5), opened(prepared, seed=1, batch_size=5)
    first = train_order(module, 3)
    torch.manual_seed(5)
    assert train_order(module, 2) != first
    assert train_order(again, 3) == first


def test_loading_leaves_the_global_random_state_alone(prepared):
    module = opened(prepared)
    before = torch.get_rng_state()
    list(module.train_dataloader())
    assert torch.equal(before, torch.get_rng_state())


class Recorder(pl.LightningModule):
    """Trains nothing; records the batches of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch, _):
        events, labels = batch
        assert events.batch_size == len(labels)
        self.seen.setdefault(self.current_epoch, []).append(hash(events.unit.numpy().tobytes()))
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, tmp_path, epochs, checkpoint=None) -> tuple[dict, pl.Trainer]:
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(recorder, datamodule=module, ckpt_path=checkpoint)
    return recorder.seen, trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["nmnist", "shd with jitter"])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(prepared, tmp_path, kind):
    def make():
        if kind == "nmnist":
            return NMNISTDataModule(prepared, batch_size=16)
        if not (tmp_path / "train.h5").exists():
            make_shd(tmp_path / "train.h5", n=80)
            make_shd(tmp_path / "test.h5", n=40, seed=1)
        return SHDDataModule(tmp_path / "a.h5", raw=tmp_path, channel_jitter=20, batch_size=16)

    whole, _ = fit(make(), tmp_path, 4)
    assert len({tuple(epoch) for epoch in whole.values()}) == 4
    first, trainer = fit(make(), tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second, _ = fit(make(), tmp_path, 4, tmp_path / "half.ckpt")
    assert first | second == whole
    assert sorted(second) == [2, 3]


def test_each_process_trains_on_its_own_part(prepared):
    class Attached:
        world_size, global_rank = 2, 1

    module = opened(prepared)
    module.trainer = Attached()  # pyright: ignore[reportAttributeAccessIssue]
    sampler = module.train_dataloader().sampler
    assert isinstance(sampler, EpochSampler)
    assert (sampler.num_replicas, sampler.rank, len(sampler)) == (2, 1, 35)


def test_spike_counts_are_sums_of_the_network_input(prepared):
    module = opened(prepared, n_steps=100, batch_size=30)
    for part in ("train", "val", "test"):
        counts, labels = module.spike_counts(part)
        dataset = module._dataset(part)
        events, expected_labels = dataset.__getitems__(list(range(len(dataset))))
        assert np.array_equal(counts, events.dense().sum(0).numpy())
        assert np.array_equal(labels, expected_labels)
    with pytest.raises(ValueError, match="split: expected train, val or test, got 'all'"):
        module.spike_counts("all")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dt_ms", 0),
        ("dt_ms", -1.0),
        ("dt_ms", float("nan")),
        ("dt_ms", float("inf")),
        ("n_steps", 0),
        ("n_steps", 10.5),
        ("batch_size", 0),
        ("batch_size", 64.0),
        ("validation_fraction", -0.1),
        ("validation_fraction", 1.0),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_named(name, value):
    for module in (NMNISTDataModule, SHDDataModule):
        with pytest.raises(ValueError, match=f"{name}: expected .*, got {value}"):
            module("a.h5", **{name: value})


@pytest.mark.parametrize("method", ["prepare", "prepare_data"])
@pytest.mark.parametrize(("module", "gb"), [(NMNISTDataModule, 1.2), (SHDDataModule, 0.2)])
def test_missing_data_name_the_command(tmp_path, module, gb, method):
    name = module.config_name
    for path, place in (
        (Path("data") / f"{name}.h5", ""),
        (tmp_path / f"{name}.h5", f" data_dir={tmp_path}"),
        (tmp_path / "a.h5", f" data.path={tmp_path / 'a.h5'}"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            getattr(module(path), method)()
        message = str(caught.value)
        assert message.startswith(f"{path}: expected prepared data, or recordings in ")
        assert "\n" not in message
        command = f"`blockspike prepare data={name} data.download=true{place}`"
        assert f"{command} downloads them ({gb} GB)" in message
        assert not list(tmp_path.iterdir())


def test_missing_custom_recordings_are_not_downloaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'mine'}, got neither") as caught:
        SHDDataModule(tmp_path / "a.h5", raw=tmp_path / "mine").prepare_data()
    assert "download" not in str(caught.value)
    assert "data=hd_lauscher_sample comes with blockspike" in str(caught.value)


@pytest.mark.parametrize(
    ("module", "n_recordings"), [(NMNISTDataModule, 1080), (SHDDataModule, 660)]
)
def test_the_sample_comes_with_the_package(tmp_path, module, n_recordings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = module("data/sample.h5", raw="sample")
    data.prepare_data()
    data.setup()
    assert f"sample ({n_recordings} recordings)" in data.name
    with pytest.raises(ValueError, match="download: expected False for the sample .*, got True"):
        module("data/sample.h5", raw="sample", download=True)


def test_every_sample_has_a_licence():
    folders = [path for path in SAMPLES.iterdir() if path.is_dir()]
    assert len(folders) == 2
    for folder in folders:
        text = (folder / "README.md").read_text()
        assert "Licence: " in text and "https://creativecommons.org/licenses/" in text


def test_setup_refuses_another_data_set(prepared):
    with pytest.raises(ValueError, match=r"expected \(700, 20\) .* with 1156 and 10"):
        SHDDataModule(prepared).setup()


class Other(pl.LightningDataModule):
    """Neither of events nor of recordings."""


@pytest.mark.parametrize(
    ("kind", "what"), [(EventDataModule, "events"), (RecordingsDataModule, "recordings")]
)
def test_a_module_of_another_kind_is_named(kind, what):
    name = f"{__name__}.Other"
    words = f"^data: expected {what}, got {name}, which is no {kind.__name__}$"
    with pytest.raises(ValueError, match=words):
        build_data(OmegaConf.create({"data": {"_target_": name}}), kind)


def test_setup_refuses_times_in_another_unit(prepared, tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(prepared.read_bytes())
    with h5py.File(path, "r+") as file:
        file["test"].attrs["unit_s"] = 1.0
    with pytest.raises(ValueError, match="a.h5: expected times in units of 1e-06 s, got 1.0"):
        NMNISTDataModule(path).setup()


def test_loaders_need_setup(prepared):
    with pytest.raises(RuntimeError, match="setup"):
        NMNISTDataModule(prepared).train_dataloader()


def test_stratified_subset_of_small_classes():
    label = np.array([0] * 40 + [1] * 2 + [2] * 5 + [3])
    chosen = stratified_subset(label, 0.1, seed=0)
    assert np.bincount(label[chosen], minlength=4).tolist() == [4, 1, 1, 0]
    assert np.bincount(label[stratified_subset(label, 0.99, 0)]).tolist() == [39, 1, 4]
    assert stratified_subset(label[:0], 0.1, seed=0).tolist() == []
