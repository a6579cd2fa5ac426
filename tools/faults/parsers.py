"""What `fuzz.py` reads: every parser with small good inputs and ways to break them."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from made_abf import write_abf  # pyright: ignore
from made_data import encode_events, idx_bytes, make_shd  # pyright: ignore
from made_ibw import write_ibw  # pyright: ignore
from made_nwb import (  # pyright: ignore
    RATE_HZ,
    MadeSeries,
    MadeSweep,
    make_nwb1,
    make_nwb2,
    make_nwb2_of,
    membrane_mv,
    noise_pa,
    share_types,
    stimulus_and_response,
)
from omegaconf import OmegaConf
from safetensors.torch import save

from blockspike.commands.overrides import OF_OVERRIDES, as_override, check_has_key
from blockspike.config.schemas import register_schemas
from blockspike.config.targets import checked_targets
from blockspike.data.event_file import SplitContent, read_event_file, write_event_file
from blockspike.data.idx import read_idx
from blockspike.data.nmnist import parse_events
from blockspike.data.nmnist_raw import open_raw
from blockspike.data.recordings import Recording, load_recording
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.data.shd_file import describe, open_h5
from blockspike.files import CONF
from blockspike.fitting.fitted_neuron import FittedNeuron, load_neuron
from blockspike.runs.identity import content_of, plain
from blockspike.runs.run import Run, RunRefusedError
from blockspike.runs.sweeps import planned_runs, run_states
from blockspike.training import checkpoint_io

# In memory, and of this process alone.
FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

Change = Callable[[bytes, random.Random], bytes]

_EDGES = (0, 1, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


@dataclass
class Parser:
    """Reads bytes; `n_runs` is how many inputs the full run has."""

    n_runs: int
    read: Callable[[bytes], object]
    make_seeds: Callable[[], list[bytes]]
    changes: list[Change] = field(default_factory=list)
    setup: Callable[[], object] | None = None

    @cached_property
    def seeds(self) -> list[bytes]:
        """Good inputs."""
        return self.make_seeds()

    def prepare(self) -> None:
        """Make the seeds and check that each is read."""
        if self.setup:
            self.setup()
        for content in self.seeds:
            self.read(content)

    def made(self, seed: int, i: int) -> bytes:
        """Input i."""
        rng = random.Random(f"{seed} {i}")
        return self.changed(rng.choice(self.seeds), rng)

    def changed(self, content: bytes, rng: random.Random) -> bytes:
        """One to four changes, of the format's own kind or of bytes."""
        changes = rng.choices([*self.changes, change_bytes], k=rng.choice((1, 1, 1, 2, 3, 4)))
        # Those of the format first: h5py itself may crash on what bytes were changed in.
        if content not in self.seeds and change_hdf5 in changes:
            changes = [change_bytes]
        for change in sorted(changes, key=lambda c: c is change_bytes):
            with suppress(Exception):  # a format's change of what is broken already
                content = change(content, rng)
        return content


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, set, cut off, cut out, repeat or insert bytes."""
    data = bytearray(content)
    at = rng.randrange(len(data) + 1)
    n = min(rng.choice((1, 2, 4, 8, 16, 100, 1000)), len(data) - at)
    match rng.randrange(7):
        case 0:
            for _ in range(rng.choice((1, 1, 2, 10))):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            size = rng.choice((1, 2, 4, 8))
            value = (rng.choice(_EDGES) + rng.choice((-1, 0, 0, 1))) % 256**size
            data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
        case 2:
            del data[at:]
        case 3:
            del data[at : at + n]
        case 4:
            data[at:at] = data[at : at + n] * rng.choice((1, 2, 50))
        case 5:
            data[at:at] = rng.randbytes(n)
        case 6:
            to = rng.randrange(len(data) + 1)
            data[at : at + n] = data[to : to + n]
    return bytes(data)


def at_path(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Reads the bytes from a file of that name."""

    def parse(content: bytes) -> object:
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return read(path)

    return parse


def file_of(write: Callable[[Path], object]) -> bytes:
    """The bytes that `write` puts into a file."""
    path = FOLDER / "seed"
    path.unlink(missing_ok=True)
    write(path)
    return path.read_bytes()


# N-MNIST


def read_nmnist(content: bytes) -> None:
    """One recording, as bytes."""
    events = parse_events(content, "fuzz")
    assert len(events.x) == len(content) // 5 and (np.diff(events.t_us.astype(int)) >= 0).all()


def nmnist_seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [
        encode_events(
            rng.integers(0, 34, n),
            rng.integers(0, 34, n),
            rng.integers(0, 2, n),
            np.sort(rng.integers(0, 300_000, n)),
        )
        for n in (1, 3, 40)
    ]


def change_events(content: bytes, rng: random.Random) -> bytes:
    """A whole event anew: lengths that fit, values that may not."""
    at = rng.randrange(len(content) // 5) * 5
    event = bytes([rng.randrange(40), rng.randrange(40)]) + rng.randbytes(3)
    return content[:at] + event + content[at + rng.choice((0, 5)) :]


def read_archive(path: Path) -> None:
    """Every recording of an archive."""
    with open_raw(path, FOLDER) as splits:
        for recording in (r for split in splits for r in split):
            read_nmnist(recording.read())


def archive_seeds() -> list[bytes]:
    import tarfile

    names = [f"{s}/{d}/a.bin" for s in ("Train", "Test") for d in range(10)]
    content = nmnist_seeds()[1]
    made = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name in names:
                archive.writestr(name, content)
        made.append(stream.getvalue())
    for mode in ("w", "w:gz", "w:xz", "w:bz2"):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode, format=tarfile.PAX_FORMAT) as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                info.pax_headers = {"comment": "x"} if name.endswith("0/a.bin") else {}
                archive.addfile(info, io.BytesIO(content))
        made.append(stream.getvalue())
    return made


def change_zip(content: bytes, rng: random.Random) -> bytes:
    """A field of a directory entry, a local header or the end."""
    marks = (b"PK\1\2", b"PK\3\4", b"PK\5\6")
    starts = [i for m in marks for i in range(len(content)) if content[i : i + 4] == m]
    data, at = bytearray(content), rng.choice(starts) + 4 + rng.randrange(42)
    size = rng.choice((1, 2, 4))
    data[at : at + size] = (rng.choice(_EDGES) % 256**size).to_bytes(size, "little")
    return bytes(data)


def change_tar(content: bytes, rng: random.Random) -> bytes:
    """A header's field, with a checksum that fits; of a packed archive the unpacked one."""
    import bz2
    import lzma

    packers: tuple[Any, ...] = (gzip, bz2, lzma)
    packer = next((p for p in packers if content[:2] == p.compress(b"")[:2]), None)
    data = bytearray(packer.decompress(content) if packer else content)
    at = rng.randrange(len(data) // 512) * 512
    offset, size = rng.choice(((0, 100), (124, 12), (156, 1), (157, 100), (100, 8), (345, 155)))
    kind = bytes([rng.choice(b"0123456789xgLKSA")])
    field_ = rng.choice((
        rng.randbytes(size), b"7" * (size - 1) + b"\0", b"\xff" * size,
        b"\x80" + rng.randbytes(size - 1), kind.ljust(size, b"\0"), b"-1".ljust(size, b"\0"),
    ))  # fmt: skip
    data[at + offset : at + offset + size] = field_
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return packer.compress(bytes(data)) if packer else bytes(data)


# HDF5


def change_hdf5(content: bytes, rng: random.Random) -> bytes:
    """A dataset or attribute with another shape, type, layout or value; a link elsewhere."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        item: Any = file[name]
        owner: Any = rng.choice((item, file))
        match rng.randrange(9):
            case 0:
                del file[name]
            case 1:
                values = any_array(rng)
                del file[name]
                file[name] = values
            case 2:
                shape = rng.choice(((0,), (3,), (1 << 40,), (1 << 20, 1 << 20), (2, 3), (1 << 24,)))
                dtype = rng.choice(("f4", "u2", "i8", "S8", "S1000000"))
                del file[name]
                file.create_dataset(
                    name, shape, dtype, chunks=tuple(min(s or 1, 64) for s in shape)
                )
            case 3:
                del file[name]
                base = rng.choice((np.float16, np.uint16, np.float64, np.int64))
                made = file.create_dataset(name, (rng.choice((0, 1, 3)),), h5py.vlen_dtype(base))
                for i in range(len(made)):
                    made[i] = np.arange(rng.randrange(5)) * rng.choice((1, -1, 700, 0.1))
            case 4:
                key = rng.choice(list(owner.attrs) or ["x"])
                owner.attrs[key] = any_value(rng)
            case 5:
                key = rng.choice(list(owner.attrs))
                del owner.attrs[key]
            case 6:
                del file[name]
                links = (
                    h5py.SoftLink(rng.choice([*names, "/no"])),
                    h5py.ExternalLink("seed", "/x"),
                )
                file[name] = rng.choice(links)
            case 7:
                other = file[rng.choice(names)]
                del file[name]
                file[name] = other
            case 8:
                if item.dtype.kind == "O":
                    if h5py.check_vlen_dtype(item.dtype) not in (None, str, bytes):
                        item[rng.randrange(len(item))] = np.arange(rng.randrange(3)) * 0.5
                else:
                    values = item[()]
                    flat = np.asarray(values).reshape(-1)
                    edges = (-1, 0, 1, 65535, np.nan, np.inf, 1e300)
                    flat[rng.randrange(len(flat))] = rng.choice(edges)
                    item[...] = flat.reshape(np.shape(values))
    return stream.getvalue()


def any_array(rng: random.Random) -> np.ndarray:
    """Of any type, shape and value."""
    shape = rng.choice(((), (0,), (1,), (3,), (4,), (2, 3), (20,)))
    dtype = rng.choice(("f2", "f4", "f8", "u1", "i2", "u8", "i8", "?", "c8", "S3", "i4,f8"))
    scale = rng.choice((1, 0, -1, 1e-12, 1e300, np.nan, np.inf))
    with np.errstate(all="ignore"):
        values = np.arange(int(np.prod(shape))) * scale
        if dtype in ("S3", "i4,f8"):
            return np.zeros(shape, dtype)
        return values.reshape(shape).astype(dtype)


def any_value(rng: random.Random) -> Any:
    """What an attribute may hold."""
    plain_ = (
        0,
        -1,
        2**63 - 1,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "A",
        "V",
        "2.6.0",
        b"\xff\xfe",
        "x" * 1000,
    )
    return rng.choice((*plain_, any_array(rng), h5py.Empty("f4"), h5py.Empty("S3")))


def shd_seeds() -> list[bytes]:
    return [file_of(lambda p, n=n: make_shd(p, n)) for n in (1, 4)]


def read_shd(path: Path) -> None:
    """A file of SHD's layout."""
    recordings = open_h5(path)
    for i in range(len(recordings)):
        recordings.sample(i)
    describe([path, path])


def shd_packed_seeds() -> list[bytes]:
    return [gzip.compress(x) for x in shd_seeds()]


def event_seeds() -> list[bytes]:
    def split(n: int, speaker: bool) -> SplitContent:
        times, units = np.arange(3 * n, dtype=np.float32), np.arange(3 * n).astype(np.uint16) % 7
        counts, label = np.full(n, 3), np.arange(n) % 2
        chunks = [(times, units)]
        return SplitContent(counts, label, chunks, np.dtype("f4"), 1e-3, label if speaker else None)

    def write(path: Path, speaker: bool) -> None:
        sensor = None if speaker else (7, 1, 1)
        write_event_file(path, "x", "y", 7, 2, split(4, speaker), split(2, speaker), sensor=sensor)

    return [file_of(lambda p, s=s: write(p, s)) for s in (True, False)]


def idx_seeds() -> list[bytes]:
    arrays = (np.arange(9, dtype=np.uint8), np.zeros((2, 28, 28), np.uint8))
    return [*map(idx_bytes, arrays), gzip.compress(idx_bytes(arrays[1]))]


def change_idx(content: bytes, rng: random.Random) -> bytes:
    """Another type, number of dimensions or size."""
    data = bytearray(content)
    at, size = rng.choice(((2, 1), (3, 1), (4, 4), (8, 4), (12, 4)))
    data[at : at + size] = (rng.choice(_EDGES) % 256**size).to_bytes(size, "big")
    return bytes(data)


def read_events_file(path: Path) -> None:
    """A prepared file, and every event in it."""
    file = read_event_file(path)
    for split in (file.train, file.test):
        split.gather(np.arange(len(split)))
    file.verified_sha256()


_SWEEPS = [
    MadeSweep(9, "Noise 1", noise_pa(1, 600), membrane_mv([3], 600)),
    MadeSweep(10, "Noise 2", noise_pa(2, 600), membrane_mv([2], 600), np.array([0.001, 0.002])),
]


def read_recording(path: Path) -> None:
    """A recording, binned."""
    _bin(load_recording(path))


def read_first_electrode(path: Path) -> None:
    """The recording of the first electrode, binned."""
    _bin(load_recording(path, electrode=0))


def read_cells(path: Path) -> None:
    """The batch of a fit to a recording, its trials, and the segments of both parts."""
    data = RecordingsDataModule(path, dt_ms=1.0)
    with redirect_stderr(io.StringIO()):  # its progress
        data.setup()
    data.batch()
    data.trials()
    for part in (data.train, data.test):
        for cell in range(len(data.names)):
            part.segments(cell)


def _bin(recording: Recording) -> None:
    for s in range(len(recording.stimuli)):
        with suppress(ValueError):
            recording.spike_trains(s, max(1.0, recording.dt_ms))


def nwb1_seeds() -> list[bytes]:
    kinds: tuple[Any, ...] = (str, bytes)
    return [file_of(lambda p, t=t: make_nwb1(p, _SWEEPS, text=t)) for t in kinds]


def nwb2_seeds() -> list[bytes]:
    return [file_of(lambda p, t=t: make_nwb2(p, _SWEEPS, table=t)) for t in (True, False)]


def nwb2_clock_seeds() -> list[bytes]:
    """Timestamps, padding, other rates and starts, two electrodes, a sweep without a current."""
    current, voltage = noise_pa(1, 600), membrane_mv([3], 600)
    padded = np.r_[voltage[:400], np.full(200, np.nan)]
    timed = {"timestamps": 7 + np.arange(600) / RATE_HZ}
    bias = {"bias_current": 1e-11}
    half, late = {"rate": RATE_HZ / 2}, {"starting_time": 0.001}
    pairs = [
        stimulus_and_response("0", current, voltage, stimulus=timed, response=timed),
        stimulus_and_response("0", current, padded, response=bias | late),
        stimulus_and_response("0", current[::2], voltage, stimulus=half),
    ]
    two = [
        *stimulus_and_response("0", current, voltage, "a"),
        *stimulus_and_response("b_0", current, voltage, "b"),
        MadeSeries("IZeroClampSeries", "rest_1", voltage, "b"),
    ]
    rows = [("in_0", "out_0"), ("in_b_0", "out_b_0"), (None, "rest_1")]
    made = [file_of(lambda p, s=series: make_nwb2_of(p, s)) for series in (*pairs, two)]
    return [*made, file_of(lambda p: make_nwb2_of(p, two, rows))]


# .ibw


def ibw_seeds() -> list[bytes]:
    """Voltages and currents of both byte orders, with units of up to four bytes."""
    current, voltage = noise_pa(1, 600), membrane_mv([2], 300)
    kinds: list[Any] = [(voltage, "mV", 0.02), (voltage, "mV", 0.02, "msec"), (current, "pA", 0.01)]
    return [
        file_of(lambda p, x=x, o=order: write_ibw(p, *x, order=o)) for order in "<>" for x in kinds
    ]


def read_waves(content: bytes) -> None:
    """A wave beside a good current, and beside a good voltage."""
    errors = []
    for units, values in (("pA", noise_pa(2, 300)), ("mV", membrane_mv([2], 300))):
        folder = FOLDER / f"beside_{units}"
        if not folder.exists():
            folder.mkdir()
            write_ibw(folder / "RecordB0.ibw", values, units, 0.02)
        (folder / "RecordA0.ibw").write_bytes(content)
        try:
            read_recording(folder)
        except ValueError as error:
            errors.append(error)
    if len(errors) == 2:
        raise errors[0]


def change_wave(content: bytes, rng: random.Random) -> bytes:
    """Another value in the header, or another length of the data."""
    header, data = content[:384], content[384:]
    return change_header(header, rng) + data[: rng.choice((None, None, 0, 4, 400, 1199))]


# .abf


def abf_seeds() -> list[bytes]:
    """Axon files of version 1; and one of version 2, where the example files are."""
    voltage = np.stack([membrane_mv([2], 300)] * 2)
    data = np.stack([voltage, np.full_like(voltage, 50.0)], 1)
    steps = ((0.0, 0.0, 20), (-50.0, 25.0, 100))
    made = [
        file_of(lambda p: write_abf(p, data[:, :1], epochs=steps)),
        file_of(lambda p: write_abf(p, data, ("mV", "pA"))),
    ]
    example = Path(__file__).parents[3] / "shared" / "data" / "abf" / "File_axon_5.abf"
    return [*made, example.read_bytes()] if example.is_file() else made


def change_header(content: bytes, rng: random.Random) -> bytes:
    """Another value in the header or a section."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, size = rng.randrange(min(len(data), 8192)), rng.choice((1, 2, 4, 8))
        value = (rng.choice(_EDGES) + rng.choice((-1, 0, 0, 1))) % 256**size
        data[at : at + size] = value.to_bytes(size, "little")
    return bytes(data)


def nwb2_cell_seeds() -> list[bytes]:
    """Two sweeps of different lengths, to fit to."""
    sweeps = []
    for number, n in enumerate((1200, 800)):
        current, voltage = noise_pa(number, n), membrane_mv([2, 5, 14], n)
        sweeps += stimulus_and_response(str(number), current, voltage)
    return [file_of(lambda p: make_nwb2_of(p, sweeps))]


# .npz


def npz_cell_seeds() -> list[bytes]:
    """Stimuli of different lengths with NaN after their ends, spikes as times or by a voltage."""
    rng = np.random.default_rng(0)
    lengths, n_repeats, dt_ms = (1200, 700, 1000), (2, 1, 3), 0.5
    current = np.full((3, 1200), np.nan)
    voltage = np.full((3, 3, 1200), np.nan)
    rows = []
    for s, (n, repeats) in enumerate(zip(lengths, n_repeats, strict=True)):
        current[s, :n] = rng.normal(50, 20, n)
        for r in range(repeats):
            steps = np.arange(20 + 5 * r, n - 20, 60)
            voltage[r, s, :n] = -65 + rng.normal(0, 0.5, n)
            voltage[r, s, steps], voltage[r, s, steps + 1] = 30, 10
            rows += [(step * dt_ms / 1000, r, s) for step in steps]
    times_s, repeat, stimulus = (np.array(x) for x in zip(*rows, strict=True))
    spikes = {"spike_times_s": times_s, "spike_repeat": repeat, "spike_stimulus": stimulus}
    counts = {"n_repeats": np.array(n_repeats)}
    made = []
    for extra in ({"voltage_mv": voltage}, spikes | counts, spikes | {"voltage_mv": voltage}):
        stream = io.BytesIO()
        np.savez(stream, current_pa=current, dt_ms=dt_ms, **extra)
        made.append(stream.getvalue())
    return made


def change_lengths(content: bytes, rng: random.Random) -> bytes:
    """A stimulus that ends earlier, with its voltages and spikes, or that is silent or constant."""
    arrays = dict(np.load(io.BytesIO(content)))
    s = rng.randrange(len(arrays["current_pa"]))
    end = rng.choice((0, 1, 2, 3, rng.randrange(1200), rng.randrange(1200)))
    kind = rng.randrange(4)
    if kind == 0:
        arrays["current_pa"][s, rng.randrange(1200) :] = rng.choice((0.0, 5.0))
    elif kind < 3:
        arrays["current_pa"][s, end:] = np.nan
        if "voltage_mv" in arrays:
            arrays["voltage_mv"][:, s, end:] = np.nan
    if "spike_times_s" in arrays and kind:
        end_s = 0.0 if kind == 3 else end * 0.0005
        kept = (arrays["spike_stimulus"] != s) | (arrays["spike_times_s"] < end_s)
        for name in ("spike_times_s", "spike_repeat", "spike_stimulus"):
            arrays[name] = arrays[name][kept]
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def change_shape(content: bytes, rng: random.Random) -> bytes:
    """An array with rows or columns less, more, transposed, reordered or padded otherwise."""
    arrays = dict(np.load(io.BytesIO(content)))
    name = rng.choice(list(arrays))
    array = np.atleast_1d(arrays[name])
    axis = rng.randrange(array.ndim)
    at = rng.randrange(array.shape[axis] + 1)
    is_number = array.dtype.kind == "f"
    match rng.randrange(7):
        case 0:
            array = np.delete(array, slice(at, at + rng.choice((1, 2, 500))), axis)
        case 1:
            array = np.concatenate([array, np.take(array, range(min(at, 3)), axis)], axis)
        case 2:
            array = array.T.copy()
        case 3:
            array = np.flip(array, axis).copy()
        case 4:
            array = array[None]
        case 5:
            array = array.astype(rng.choice(("f4", "f2", "i8", "u1", "i4")))
        case 6:
            values = (np.nan, np.inf, 1e300, -1.0) if is_number else (-1, 99, 10_000, 2**31)
            array = array.copy()
            array[tuple(slice(rng.randrange(n), None) for n in array.shape)] = rng.choice(values)
    stream = io.BytesIO()
    np.savez(stream, **(arrays | {name: array}))
    return stream.getvalue()


def npz_seeds() -> list[bytes]:
    current, voltage = noise_pa(1, 300), membrane_mv([2], 300)
    spikes = {"spike_times_s": np.array([0.001, 0.002]), "spike_repeat": np.array([0, 1])}
    made = []
    for save_ in (np.savez, np.savez_compressed):
        for extra in ({"voltage_mv": voltage}, {**spikes, "spike_stimulus": np.array([0, 0])}):
            stream = io.BytesIO()
            save_(stream, current_pa=current, dt_ms=0.02, **extra)
            made.append(stream.getvalue())
    return made


_NPY_HEADERS = {
    "'<f8'": ("'|O'", "'<f2'", "'V0'", "'<U3'", "[('a','<f8')]", "'|S0'", "'<M8[s]'"),
    "False": ("True", "None", "0"),
    "(": ("(-1,", "(1<<40,", "(9999999999999,", "(0,9999999999999,", "((", "[" * 90),
    ")": (",)", ",2)", "]"),
    "{": ("", "{'x':1,", "{" * 300, "-" * 5000),
}


def change_npz(content: bytes, rng: random.Random) -> bytes:
    """An array of another kind, or another header, in an archive that is whole."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    match rng.randrange(4):
        case 0:
            del members[name]
        case 1:
            stream = io.BytesIO()
            np.save(stream, any_array(rng))
            members[name] = stream.getvalue()
        case 2:
            raw = members[name]
            n = struct.unpack("<H", raw[8:10])[0]
            header = raw[10 : 10 + n].decode("latin1")
            old = rng.choice(list(_NPY_HEADERS))
            header = header.replace(old, rng.choice(_NPY_HEADERS[old]), 1)
            packed = header.encode("latin1")
            members[name] = raw[:8] + struct.pack("<H", len(packed)) + packed + raw[10 + n :]
        case 3:
            members[name] = change_bytes(members[name], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(
        stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as out:
        for key, value in members.items():
            out.writestr(key, value)
    return stream.getvalue()


# Configurations and the files of a run


def train_config(*overrides: str, command: str = "train") -> Any:
    """A configuration as a run writes it."""
    GlobalHydra.instance().clear()
    own = ["data=nmnist_sample"] if command == "train" else []
    own += ["run_dir=x", "data_config=nmnist_sample", "choices=null"]
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose(command, [*own, *overrides])


def read_overrides(content: bytes) -> None:
    """One override, as from the command line; the configuration and its hash if it is right."""
    try:
        override = content.decode(errors="replace")
        check_has_key("train", override)
        cfg = train_config(as_override("train", override))
    except OF_OVERRIDES as error:
        raise ValueError from error
    content_of(cfg)


OVERRIDES = [
    "model.arp_ms=10", "+model.x={a: [1, 2.5, null], b: 'q'}", "network.n_hidden=128",
    "~scheduler", "data.path='a/b=c.h5'", "model.beta_bounds=[0.1,0.9]", "experiment=demo",
    "trainer.max_epochs=3", "++optimizer.lr=1e-3", "model=blocks", "seed=${oc.env:NONE,3}",
    "optimizer=adam", "logger=tensorboard", "model.surrogate=boxcar", "data.n_steps=7",
    "experiment_name=${folder_name:abc}",
]  # fmt: skip
_TOKENS = [
    b"${", b"}", b"[", b"]", b"{", b"}", b"'", b'"', b",", b"=", b"\\", b"~", b"+", b"null",
    b"1e999", b"-inf", b"nan", b"${oc.env:", b"${seed}", b"@", b".", b"...", b":",
    b"!!python/object", b"&a", b"*a", b"<<: ", b"\n", b"- ", b"? ", b"---\n",
    b"999999999999999999999", b"0x", b"2001-99-99", b"[" * 500, b"{a: " * 100, b"_target_",
    b"choice(", b"glob(*)", b"interval(0,1)", b"\xff", b"\0", "é😀".encode(), b"true", b"-1",
    b"1:99:99", b'"dict"', b'{"tensor": ', b"NaN", b"Infinity", b"9" * 5000,
]  # fmt: skip


def override_seeds() -> list[bytes]:
    return [text.encode() for text in OVERRIDES]


def change_text(content: bytes, rng: random.Random) -> bytes:
    """A token put in, or one word in the place of another."""
    words = content.replace(b"=", b" = ").split(b" ")
    if rng.random() < 0.5 and len(words) > 1:
        words[rng.randrange(len(words))] = rng.choice([*_TOKENS, *words])
        return b" ".join(words).replace(b" = ", b"=")
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(_TOKENS) + content[at + rng.choice((0, 0, 1, 5)) :]


def change_json(content: bytes, rng: random.Random) -> bytes:
    """A value of another kind somewhere in the tree, or a key less or more."""
    tree = json.loads(content)
    parent = node = tree
    key = None
    for _ in range(rng.randrange(1, 6)):
        if not isinstance(node, dict | list) or not node:
            break
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
    values = [
        None,
        True,
        -1,
        2**70,
        1e308,
        float("nan"),
        "",
        "x",
        [],
        {},
        [1],
        {"a": 1},
        [[]],
        "0",
        tree,
    ]
    value = rng.choice(values)
    if key is None or rng.random() < 0.1:
        return json.dumps(value).encode()
    if rng.random() < 0.2:
        del parent[key]
    elif isinstance(parent, dict) and rng.random() < 0.2:
        parent[rng.choice(("x", "dict", "tensor", "list", "tuple"))] = value
    else:
        parent[key] = json.loads(json.dumps(value))
    return json.dumps(tree).encode()


def config_seeds() -> list[bytes]:
    configs = [
        train_config(),
        train_config("experiment=recovery", command="fit"),
        train_config("logger=tensorboard"),
    ]
    return [OmegaConf.to_yaml(c, resolve=True).encode() for c in configs]


def read_run_config(path: Path) -> None:
    """A run's configuration, and what it would start."""
    cfg = plain(Run(path.parent).config())
    for key in ("data", "model", "population", "optimizer", "trainer", "logger"):
        checked_targets(cfg.get(key), key)


def change_yaml(content: bytes, rng: random.Random) -> bytes:
    """A line cut, repeated, moved in or out, or with another value."""
    lines = content.split(b"\n")
    i = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[i]
        case 1:
            lines[i:i] = [lines[i]] * rng.choice((1, 100))
        case 2:
            lines[i] = rng.choice((b"  ", b"    ", b"- ", b"\t")) + lines[i]
        case 3:
            lines[i] = lines[i].partition(b":")[0] + b": " + rng.choice(_TOKENS)
    return b"\n".join(lines)


def run_seeds() -> list[bytes]:
    row = {"state": "done", "pid": 7, "started": "2026-01-01T00:00:00+0000", "config_hash": "ab"}
    row |= {
        "ended": "2026-01-01T01:00:00+0000",
        "model": {"b": 1.0},
        "seed": 0,
        "test_accuracy": 0.5,
    }
    return [json.dumps(row).encode()]


def read_run(content: bytes) -> None:
    """The same bytes as each of a run's files of JSON."""
    folder = FOLDER / "outputs" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("content.json", "result.json", "status.json"):
        (folder / name).write_bytes(content)
    (folder / ".lock").touch()
    errors: list[Exception] = []
    readers: list[Callable[[], object]] = [
        Run(folder).result, lambda: Run(folder).check_content({"seed": 0}),
        lambda: run_states(FOLDER / "outputs"),
    ]  # fmt: skip
    for read in readers:
        try:
            read()
        except RunRefusedError:
            pass
        except ValueError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def plan_seeds() -> list[bytes]:
    return [json.dumps({"overrides": ["seed=1,2"], "runs": {"a/seed=1": "ab", "b": "cd"}}).encode()]


def read_plan(content: bytes) -> None:
    """A sweep's plan."""
    folder = FOLDER / "planned" / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.json").write_bytes(content)
    planned_runs(folder.parent)
    run_states(folder.parent)


# Checkpoints and fitted neurons


def checkpoint_seeds() -> list[bytes]:
    state = {"w": torch.zeros(2, 3), "i": torch.arange(4), "h": torch.zeros(1, dtype=torch.float16)}
    content = {"epoch": 3, "state_dict": state, "x": [(1, 2.5, None, "s", True), {0: "a"}]}
    return [file_of(lambda p: checkpoint_io.save_plain(content, p))]


def change_checkpoint(content: bytes, rng: random.Random) -> bytes:
    """Another structure, tensor or header, with a checksum that fits where one can be made."""
    n = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + n]), content[8 + n :]
    about = header["__metadata__"]
    match rng.randrange(4):
        case 0:
            about["structure"] = change_json(about["structure"].encode(), rng).decode()
        case 1:
            about["structure"] = change_text(about["structure"].encode(), rng).decode(
                errors="replace"
            )
        case 2:
            key = rng.choice([k for k in header if k != "__metadata__"])
            header[key]["shape"] = rng.choice(
                ([], [0], [2**62, 0], [2**62, 4], [-1], [6], [3, 2], [1] * 100)
            )
            header[key]["dtype"] = rng.choice(
                (
                    "F32",
                    "BF16",
                    "F8_E5M2",
                    "F8_E4M3",
                    "I64",
                    "BOOL",
                    "U8",
                    "F64",
                    "C64",
                    "F4",
                    "U16",
                    "X",
                )
            )
            low = rng.choice((0, 8, 32, 2**63))
            header[key]["data_offsets"] = [low, low + rng.choice((0, 8, 24, len(body), 2**62))]
        case 3:
            header[rng.choice(("x", "0", "__metadata__"))] = rng.choice(
                (None, {}, about, {"a": "b"})
            )
    packed = json.dumps(header).encode()
    made = len(packed).to_bytes(8, "little") + packed + body
    with suppress(Exception):
        from safetensors.torch import load

        tensors = load(made)
        about["sha256"] = checkpoint_io._digest(about["structure"], tensors)
        made = save(tensors, metadata=about)
    return made


def neuron_seeds() -> list[bytes]:
    neuron = FittedNeuron("x", 20.0, 100.0, 0.1, 0.01, 0.0, 2.0, 0.1)
    return [file_of(neuron.save)]


def read_neuron(path: Path) -> None:
    """A fitted neuron, simulated."""
    load_neuron(path).simulate(np.ones(20))


PARSERS = {
    "nmnist": Parser(400_000, read_nmnist, nmnist_seeds, [change_events]),
    "checkpoint": Parser(
        150_000,
        at_path("a.ckpt", checkpoint_io.load_plain),
        checkpoint_seeds,
        [change_checkpoint] * 3,
    ),
    "npz": Parser(100_000, at_path("a.npz", read_recording), npz_seeds, [change_npz] * 2),
    "npz_cells": Parser(
        20_000,
        at_path("a.npz", read_cells),
        npz_cell_seeds,
        [change_lengths, change_lengths, change_lengths, change_shape],
    ),
    "abf": Parser(100_000, at_path("a.abf", read_recording), abf_seeds, [change_header] * 3),
    "neuron": Parser(
        100_000, at_path("a.json", read_neuron), neuron_seeds, [change_json, change_text]
    ),
    "plan": Parser(60_000, read_plan, plan_seeds, [change_json, change_text]),
    "archive": Parser(
        50_000, at_path("a.archive", read_archive), archive_seeds, [change_zip, change_tar]
    ),
    "run": Parser(40_000, read_run, run_seeds, [change_json, change_json, change_text]),
    "config": Parser(
        20_000,
        at_path("run/config.yaml", read_run_config),
        config_seeds,
        [change_yaml, change_text],
        register_schemas,
    ),
    "shd": Parser(20_000, at_path("a.h5", read_shd), shd_seeds, [change_hdf5]),
    "shd_packed": Parser(20_000, at_path("a.h5.gz", read_shd), shd_packed_seeds),
    "events": Parser(20_000, at_path("a.h5", read_events_file), event_seeds, [change_hdf5]),
    "idx": Parser(100_000, at_path("a-idx", read_idx), idx_seeds, [change_idx] * 2),
    "nwb1": Parser(20_000, at_path("a.nwb", read_recording), nwb1_seeds, [change_hdf5]),
    "overrides": Parser(
        20_000, read_overrides, override_seeds, [change_text] * 2, register_schemas
    ),
    "ibw": Parser(100_000, read_waves, ibw_seeds, [change_wave] * 3),
    "nwb2": Parser(5_000, at_path("a.nwb", read_recording), nwb2_seeds, [change_hdf5], share_types),
    "nwb2_clocks": Parser(
        5_000, at_path("a.nwb", read_first_electrode), nwb2_clock_seeds, [change_hdf5], share_types
    ),
    "nwb2_cells": Parser(
        5_000, at_path("a.nwb", read_cells), nwb2_cell_seeds, [change_hdf5], share_types
    ),
}
