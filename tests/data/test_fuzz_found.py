"""Inputs that fuzzing found, one by one."""

import gzip
import json
import tarfile
import zipfile
import zlib
from typing import Any, cast

import h5py
import numpy as np
import pytest
from h5py import h5a, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]
from made_data import make_shd
from made_nwb import MadeSweep, make_nwb1, membrane_mv, noise_pa

from blockspike.data.event_file import SplitContent, read_event_file, write_event_file
from blockspike.data.hdf5 import DatasetReader, attribute
from blockspike.data.limits import ReadLimit
from blockspike.data.nmnist import prepare_nmnist
from blockspike.data.recordings import load_recording
from blockspike.data.shd_file import open_h5
from blockspike.fitting.fitted_neuron import FittedNeuron, load_neuron


def test_repeats_of_many_stimuli_are_limited_together(tmp_path):
    """A file of a few hundred bytes could ask for a million silent trains."""
    arrays = {
        "current_pa": np.stack([noise_pa(1, 100)] * 120), "dt_ms": 0.1,
        "spike_times_s": np.array([0.001]), "n_repeats": 10_000,
    }  # fmt: skip
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="n_repeats: expected at most 10000 .* got 1200000"):
        load_recording(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spike_repeat": np.array([0, 1 << 60])}, "expected integers >= 0 below 10000"),
        ({"dt_ms": 1e300}, "dt_ms: expected one number, .*, got 1e.300"),
        ({"dt_ms": 1e-310}, "dt_ms: expected one number, .*, got 1e-310"),
    ],
)
def test_recordings_with_absurd_numbers_are_refused(tmp_path, change, words):
    arrays = {"current_pa": noise_pa(1, 100), "dt_ms": 0.1, "spike_times_s": np.array([0.001] * 2)}
    np.savez(tmp_path / "a.npz", **(arrays | change))
    with pytest.raises(ValueError, match=words):
        load_recording(tmp_path / "a.npz")


def test_spikes_come_back_by_repeat_and_in_order(tmp_path):
    times_s, repeat = np.array([0.003, 0.001, 0.002, 0.004]), np.array([3, 1, 3, 1])
    arrays = {"current_pa": noise_pa(1, 100), "dt_ms": 0.1, "spike_times_s": times_s}
    np.savez(tmp_path / "a.npz", **arrays, spike_repeat=repeat, n_repeats=4)
    found = load_recording(tmp_path / "a.npz").spike_times_s
    expected = [[], [0.001, 0.004], [], [0.002, 0.003]]
    assert [np.asarray(train[0]).tolist() for train in found] == expected


@pytest.mark.parametrize("rate", [1e-300, 1e300, np.array([1.0, 2.0]), "fast"])
def test_nwb_with_an_impossible_rate(tmp_path, rate):
    sweep = MadeSweep(9, "Noise", noise_pa(1, 600), membrane_mv([3], 600))
    path = make_nwb1(tmp_path / "a.nwb", [sweep])
    with h5py.File(path, "r+") as file:
        file["epochs/Sweep_9/stimulus/timeseries/starting_time"].attrs["rate"] = rate
    with pytest.raises(ValueError, match="sweep 9: expected a sampling rate"):
        load_recording(path)


def test_nwb_without_a_conversion_is_named(tmp_path):
    sweep = MadeSweep(9, "Noise", noise_pa(1, 600), membrane_mv([3], 600))
    path = make_nwb1(tmp_path / "a.nwb", [sweep])
    with h5py.File(path, "r+") as file:
        file["epochs/Sweep_9/stimulus/timeseries/data"].attrs["conversion"] = np.empty(0)
    with pytest.raises(ValueError, match="sweep 9: conversion of the current: expected a number"):
        load_recording(path)


def test_links_in_a_circle_are_damage(tmp_path):
    path = make_shd(tmp_path / "a.h5", 3, labels=None)
    with h5py.File(path, "r+") as file:
        file["labels"] = h5py.SoftLink("/labels")
    with pytest.raises(ValueError, match=r"a\.h5: "):
        open_h5(path)


@pytest.mark.parametrize("value", [np.array([1, 2]), np.inf])
def test_prepared_file_with_another_kind_of_attribute(tmp_path, value):
    part = SplitContent(
        np.array([1]), np.array([0]), [(np.zeros(1, "f4"), np.zeros(1, "u2"))], np.dtype("f4"), 1.0
    )
    write_event_file(tmp_path / "a.h5", "x", "y", 2, 2, part, part)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["n_units"] = value
    with pytest.raises(ValueError, match=r"a\.h5: not a complete HDF5 file"):
        read_event_file(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rest": 10**400}, "rest: expected a number, got"),
        ({"arp_ms": -1.0}, "arp_ms: expected 0 to 1000, got -1"),
        ({"dt_ms": 1e-300}, "dt_ms: expected 0.0001 to 1000"),
        ({"b": True}, "b: expected a number, got True"),
    ],
)
def test_neurons_that_cannot_be_simulated(tmp_path, change, words):
    path = tmp_path / "a.json"
    FittedNeuron("x", 20.0, 100.0, 0.1, 0.01, 0.0, 2.0, 0.1).save(path)
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    path.write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=words):
        load_neuron(path)


def test_zip_of_a_later_version_is_damage(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("Train", "Test"):
            for digit in range(10):
                archive.writestr(f"{split}/{digit}/a.bin", bytes(5))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\1\2\x14\x03\x14", b"PK\1\2\x14\x03\xff"))
    with pytest.raises(ValueError, match=r"a\.zip: not a complete .* archive"):
        prepare_nmnist(path, tmp_path / "a.h5")


def test_an_archive_is_not_read_past_its_end(tmp_path):
    """Not even for a member that is skipped."""
    member = tarfile.TarInfo("Train/0/note.txt")
    member.size = 1 << 38
    with gzip.GzipFile(tmp_path / "a.tar.gz", "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(ValueError, match="note.txt': expected at most .*, got 274877906944"):
        prepare_nmnist(tmp_path / "a.tar.gz", tmp_path / "a.h5")


@pytest.mark.parametrize("layout", [{}, {"chunks": (7,)}, {"chunks": (7,), "compression": "gzip"}])
@pytest.mark.parametrize("dtype", [h5py.vlen_dtype(np.float32), h5py.string_dtype()])
def test_lengths_are_checked_before_their_memory_is_taken(tmp_path, layout, dtype):
    """The HDF5 library would allocate and clear 16 GB for one damaged length."""
    path, is_text = tmp_path / "a.h5", h5py.check_string_dtype(dtype) is not None
    values = ["a" * n if is_text else np.ones(n, np.float32) for n in range(19)]
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", (20,), dtype, **layout)  # the last is never written
        dataset[:19] = np.array(values, object)
    with h5py.File(path) as file:
        dataset, reader = cast(h5py.Dataset, file["x"]), DatasetReader(file, path, ReadLimit(path))
        assert [len(value) for value in reader.read(dataset)] == [*range(19), 0]
        itemsize, start = 1 if is_text else 4, dataset.id.get_offset()
        assert reader.limit.n_bytes - reader.limit.left == 20 * 8 + itemsize * sum(range(19))
    if layout:
        with h5py.File(path, "r+") as file:
            chunks: Any = file["x"].id
            mask, packed = chunks.read_direct_chunk((0,))
            chunk = bytearray(zlib.decompress(packed) if "compression" in layout else packed)
            chunk[3] = 0xF0
            packed = zlib.compress(chunk) if "compression" in layout else bytes(chunk)
            chunks.write_direct_chunk((0,), packed, mask)
    else:
        content = bytearray(path.read_bytes())
        content[start + 3] = 0xF0  # the highest byte of the first length
        path.write_bytes(content)
    words = f"x: expected at most .*, got {str(itemsize * (0xF0 << 24))[:6]}"
    with h5py.File(path) as file, pytest.raises(ValueError, match=words):
        DatasetReader(file, path, ReadLimit(path)).read(cast(h5py.Dataset, file["x"]))


def test_single_arrays_of_variable_length_are_not_read(tmp_path):
    """A flipped bit turns them into texts, at which h5py crashes."""
    kind = h5py.vlen_dtype(np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", (), kind)
        name: Any = b"y"
        h5a.create(file.id, name, h5t.py_create(kind, logical=True), h5s.create(h5s.SCALAR))
        with pytest.raises(ValueError, match="x: expected numbers or texts, got object"):
            DatasetReader(file, tmp_path / "a.h5", ReadLimit(tmp_path / "a.h5")).read(dataset)
        with pytest.raises(ValueError, match="'y' of /: expected numbers or texts, got object"):
            attribute(file, "y")


@pytest.mark.parametrize("kind", [2, 15])
def test_arrays_of_an_unknown_variable_length_are_not_read(tmp_path, kind):
    """The HDF5 library crashes at some of them."""
    content = make_shd(tmp_path / "a.h5", 3).read_bytes()
    variable, damaged = b"\x19\0\0\0\x10\0\0\0", bytes([0x19, kind, 0, 0, 16, 0, 0, 0])
    assert content.count(variable) == 2  # times and units
    (tmp_path / "a.h5").write_bytes(content.replace(variable, damaged))
    words = f"spikes/times: expected arrays or texts of variable length, got kind {kind}"
    with pytest.raises(ValueError, match=words):
        open_h5(tmp_path / "a.h5")
