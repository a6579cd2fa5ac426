"""NWB files of current-clamp sweeps and membrane potentials, made by the tests."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path

import h5py
import numpy as np

RATE_HZ = 50_000.0
DT_MS = 1e3 / RATE_HZ


@dataclass(frozen=True)
class MadeSweep:
    """One sweep for the tests to write; with ``name`` None, the stimulus has no name."""

    number: int
    name: str | None
    current_pa: np.ndarray
    voltage_mv: np.ndarray | None
    spike_times_s: np.ndarray | None = None


def noise_pa(seed: int, n_samples: int = 5000) -> np.ndarray:
    """A fluctuating current of about 100 pA, in whole pA."""
    return np.rint(100 * np.random.default_rng(seed).standard_normal(n_samples))


def membrane_mv(
    spikes_ms: Sequence[float], n_samples: int = 5000, dt_ms: float = DT_MS
) -> np.ndarray:
    """A potential at −70 mV with action potentials whose upstroke is at −20 mV at ``spikes_ms``.

    They rise by 100 mV in 0.5 ms, fall in 1 ms to 10 mV below rest and recover within some 10 ms.
    """
    t = np.arange(n_samples) * dt_ms
    voltage = np.full(n_samples, -70.0)
    for spike in spikes_ms:
        s = t - spike
        shape = np.interp(s, [-0.25, 0.25, 1.25], [0.0, 100.0, -10.0])
        voltage += np.where(s > 1.25, -10 * np.exp(-(s - 1.25) / 3), shape)
    return voltage


def make_nwb1(
    path: Path,
    sweeps: Sequence[MadeSweep],
    text: type[bytes] | type[str] = bytes,
    version: str | None = "1.1.0",
    is_si: bool = False,
) -> Path:
    """Write a file in the layout of the Allen Cell Types Database.

    ``text`` is the type of every string. With ``is_si``, data are stored in SI with a wrong
    conversion factor, as by the oldest pipelines.
    """

    def string(value: str):
        return value.encode() if text is bytes else value

    with h5py.File(path, "w") as file:
        file["nwb_version"] = string("NWB-1.0.5")
        if version is not None:
            words = ["pipeline", "aibs", "version", version]
            dtype = h5py.string_dtype() if text is str else "S16"
            file.create_dataset("general/generated_by", data=words, dtype=dtype)
        for sweep in sweeps:
            epoch = file.create_group(f"epochs/Sweep_{sweep.number}")
            sides = [("stimulus", sweep.current_pa, 1e-12, "A")]
            if sweep.voltage_mv is not None:
                sides.append(("response", sweep.voltage_mv, 1e-3, "V"))
            for side, values, conversion, unit in sides:
                series = epoch.create_group(f"{side}/timeseries")
                series["data"] = values * conversion if is_si else values.astype(np.float32)
                series["data"].attrs["conversion"] = conversion
                series["data"].attrs["unit"] = string(unit)
                series["starting_time"] = 0.0
                series["starting_time"].attrs["rate"] = RATE_HZ
            if sweep.name is not None:
                acquisition = f"acquisition/timeseries/Sweep_{sweep.number}"
                file[f"{acquisition}/aibs_stimulus_name"] = string(sweep.name)
            if sweep.spike_times_s is not None:
                file[f"analysis/spike_times/Sweep_{sweep.number}"] = sweep.spike_times_s
    return path


def share_types() -> None:
    """Let pynwb copy its map of types once, not for every attribute: 9 tenths of its time."""
    pynwb = importlib.import_module("pynwb")
    types = pynwb.get_type_map()
    pynwb.core.NWBMixin._get_type_map = lambda self: types


def make_nwb2(
    path: Path,
    sweeps: Sequence[MadeSweep],
    table: bool = True,
    numbered: bool = True,
    voltage_clamp: Sequence[int] = (),
    stimulus_type: str | None = None,
    conversion_pa: float = 1e-12,
) -> Path:
    """Write NWB 2 with pynwb.

    Args:
        table: write ``intracellular_recordings``.
        numbered: write ``sweep_number``.
        voltage_clamp: numbers of the voltage-clamp sweeps.
        stimulus_type: stimulus type of all sweeps, in ``sequential_recordings``.
        conversion_pa: conversion factor of the currents, which also have an offset of 5 pA.
    """
    # Imported by name: it may be missing, and pyright cannot check its constructors.
    pynwb, icephys = (importlib.import_module(name) for name in ("pynwb", "pynwb.icephys"))
    file = pynwb.NWBFile("made", "made", datetime(2024, 1, 1, tzinfo=UTC))
    electrode = file.create_icephys_electrode(
        name="electrode", description="-", device=file.create_device("amplifier")
    )
    for sweep in sweeps:
        is_vc = sweep.number in voltage_clamp
        response_class = icephys.VoltageClampSeries if is_vc else icephys.CurrentClampSeries
        stimulus_class = (
            icephys.VoltageClampStimulusSeries if is_vc else icephys.CurrentClampStimulusSeries
        )
        common = {
            "electrode": electrode,
            "rate": RATE_HZ,
            "gain": 1.0,
            "sweep_number": np.uint32(sweep.number) if numbered else None,
            "stimulus_description": sweep.name or "N/A",
        }
        stimulus = stimulus_class(
            name=f"stimulus_{sweep.number}",
            data=sweep.current_pa - 5,
            conversion=conversion_pa,
            offset=5e-12,
            **common,
        )
        file.add_stimulus(stimulus)
        response = None
        if sweep.voltage_mv is not None:
            response = response_class(
                name=f"response_{sweep.number}", data=sweep.voltage_mv, conversion=1e-3, **common
            )
            file.add_acquisition(response)
        if table:
            file.add_intracellular_recording(
                electrode=electrode, stimulus=stimulus, response=response
            )
    if stimulus_type is not None:
        rows = [file.add_icephys_simultaneous_recording([i]) for i in range(len(sweeps))]
        file.add_icephys_sequential_recording(
            simultaneous_recordings=rows, stimulus_type=stimulus_type
        )
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path


@dataclass(frozen=True)
class MadeSeries:
    """One series of an NWB 2 file, in pA or mV; ``options`` are arguments of its class."""

    kind: str
    name: str
    values: np.ndarray
    electrode: str = "electrode"
    options: dict = field(default_factory=dict)


def stimulus_and_response(
    ending: str,
    current_pa: np.ndarray,
    voltage_mv: np.ndarray,
    electrode: str = "electrode",
    stimulus: dict | None = None,
    response: dict | None = None,
) -> list[MadeSeries]:
    """A pair of series whose names have the same ending."""
    return [
        MadeSeries(
            "CurrentClampStimulusSeries", f"in_{ending}", current_pa, electrode, stimulus or {}
        ),
        MadeSeries("CurrentClampSeries", f"out_{ending}", voltage_mv, electrode, response or {}),
    ]


def make_nwb2_of(
    path: Path,
    series: Sequence[MadeSeries],
    rows: Sequence[tuple[str | None, str | None]] = (),
    samples: Sequence[slice] = (),
) -> Path:
    """Write NWB 2 with these series, at `RATE_HZ` unless their options say otherwise.

    ``rows`` of ``intracellular_recordings`` are names of a stimulus and a response, each of all
    samples or of these ``samples`` of both.
    """
    pynwb, icephys = (importlib.import_module(name) for name in ("pynwb", "pynwb.icephys"))
    file = pynwb.NWBFile("made", "made", datetime(2024, 1, 1, tzinfo=UTC))
    device = file.create_device("amplifier")
    for name in dict.fromkeys(one.electrode for one in series):
        file.create_icephys_electrode(name=name, description="-", device=device)
    made: dict[str | None, object] = {None: None}
    for one in series:
        is_current = one.kind.startswith("CurrentClampStimulus") or one.kind == "VoltageClampSeries"
        options = {} if "timestamps" in one.options else {"rate": RATE_HZ}
        made[one.name] = getattr(icephys, one.kind)(
            name=one.name,
            data=one.values,
            conversion=1e-12 if is_current else 1e-3,
            electrode=file.icephys_electrodes[one.electrode],
            gain=1.0,
            **(options | one.options),
        )
        (file.add_stimulus if "Stimulus" in one.kind else file.add_acquisition)(made[one.name])
    for stimulus, response, part in zip_longest(*zip(*rows, strict=True), samples):
        of_row = next(one for one in series if one.name in (stimulus, response))
        names = ("start_index", "index_count")
        values = (part.start, part.stop - part.start) if part else ()
        bounds = {f"{side}_{name}": value for side in ("stimulus", "response")
                  for name, value in zip(names, values, strict=False)}  # fmt: skip
        file.add_intracellular_recording(
            electrode=file.icephys_electrodes[of_row.electrode],
            stimulus=made[stimulus],
            response=made[response],
            **bounds,
        )
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path
