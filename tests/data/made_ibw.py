"""Igor waves, written by the tests: version 5 of the format, one row, float32."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_HEADER, _WAVE_HEADER = 64, 320
_FLOAT32 = 2


def write_ibw(
    path: Path,
    values: np.ndarray,
    units: str = "mV",
    dx: float = 0.1,
    x_units: str = "ms",
    x0: float = 0.0,
    order: str = "<",
) -> Path:
    """Write a wave; units of more than three bytes follow the data, as Igor has it."""
    data = np.asarray(values, f"{order}f4").tobytes()
    texts = [x.encode("latin-1") for x in (units, x_units)]
    short, long = zip(*((x, b"") if len(x) < 4 else (b"", x) for x in texts), strict=True)
    header = struct.pack(
        f"{order}hh15i",
        5,
        0,
        _WAVE_HEADER + len(data),
        0,
        0,
        len(long[0]),
        len(long[1]),
        *[0] * 10,
    )
    wave = struct.pack(
        f"{order}12xiHH6xh32s8x4i8d4s4s", len(values), _FLOAT32, 0, 1, b"wave",
        len(values), 0, 0, 0, dx, 1, 1, 1, x0, 0, 0, 0, short[0], short[1],
    )  # fmt: skip
    content = header.ljust(_HEADER, b"\0") + wave.ljust(_WAVE_HEADER, b"\0") + data
    path.write_bytes(content + long[0] + long[1])
    return path


def write_sweep(
    folder: Path, number: int, voltage_mv: np.ndarray, current_pa: np.ndarray, dt_ms: float = 0.1
) -> Path:
    """Write a voltage and a current under the names that NeuroMatic gives them."""
    folder.mkdir(exist_ok=True)
    write_ibw(folder / f"RecordA{number}.ibw", voltage_mv, "mV", dt_ms)
    write_ibw(folder / f"RecordB{number}.ibw", current_pa, "pA", dt_ms)
    return folder
