"""Axon files (version 1) written for tests: recorded channels, and a command made of epochs."""

import struct
from pathlib import Path

import numpy as np

_BLOCK, _HEADER_BLOCKS = 512, 16
_STEP = 1
_ADC_RANGE, _RESOLUTION = 10.0, 2**15
_MOST_CHANNELS, _MOST_EPOCHS = 16, 10


def write_abf(
    path: Path,
    data: np.ndarray,
    units: tuple[str, ...] = ("mV",),
    rate_hz: float = 10_000.0,
    *,
    output_units: tuple[str, ...] = ("pA", "mV"),
    epochs: tuple[tuple[float, float, int], ...] = (),
    holding: float = 0.0,
    kind: int = _STEP,
    source: int = 1,
    has_user_list: bool = False,
) -> Path:
    """Write sweeps [S, C, T] of channels in `units`.

    Args:
        path: the file.
        data: values in the channels' units.
        units: of the recorded channels.
        rate_hz: sampling rate of a channel.
        output_units: of the outputs; the first drives the electrode.
        epochs: steps of the command: (level of the first sweep, increase per sweep, samples).
        holding: level of the first output before and after the epochs.
        kind: of the epochs: 1 = steps, 2 = ramps, 3 = pulses.
        source: 1 = the command is made of epochs, 2 = it is read from a stimulus file.
        has_user_list: whether a user list changes the command.
    """
    n_sweeps, n_channels, n_samples = data.shape
    header = bytearray(_BLOCK * _HEADER_BLOCKS)

    def put(form: str, at: int, *values) -> None:
        struct.pack_into(form, header, at, *values)

    put("<4s", 0, b"ABF ")
    put("<f", 4, 1.83)
    put("<h", 8, 5)  # episodic
    put("<i", 10, data.size)
    put("<i", 16, n_sweeps)
    put("<i", 40, _HEADER_BLOCKS)
    put("<h", 100, 0)  # 16-bit integers
    put("<h", 120, n_channels)
    put("<f", 122, 1e6 / rate_hz / n_channels)
    put("<i", 138, n_samples * n_channels)
    put("<f", 244, _ADC_RANGE)
    put("<i", 252, _RESOLUTION)
    put(f"<{_MOST_CHANNELS}h", 378, *range(_MOST_CHANNELS))
    put(f"<{_MOST_CHANNELS}h", 410, *range(n_channels), *[-1] * (_MOST_CHANNELS - n_channels))
    scale = 0.02  # volts per unit: ± 500 units in ± 10 V
    for i in range(_MOST_CHANNELS):
        put("<10s", 442 + 10 * i, f"IN {i}".ljust(10).encode())
        put("<8s", 602 + 8 * i, (units[i] if i < n_channels else "").ljust(8).encode("latin-1"))
        for at, value in ((730, 1.0), (922, scale), (1050, 1.0)):
            put("<f", at + 4 * i, value)
    for i, unit in enumerate(output_units):
        put("<10s", 1306 + 10 * i, f"Cmd {i}".ljust(10).encode())
        put("<8s", 1346 + 8 * i, unit.ljust(8).encode())
    put("<f", 1394, holding)
    put("<2h", 2296, 1 if epochs or source != 1 else 0, 0)
    put("<2h", 2300, source, 1)
    for i, (level, increase, samples) in enumerate(epochs):
        assert i < _MOST_EPOCHS
        put("<h", 2308 + 2 * i, kind)
        put("<f", 2348 + 4 * i, level)
        put("<f", 2428 + 4 * i, increase)
        put("<i", 2508 + 4 * i, samples)
    put("<i", 3360, int(has_user_list))
    counts = np.round(data.transpose(0, 2, 1) * scale * _RESOLUTION / _ADC_RANGE).astype("<i2")
    path.write_bytes(bytes(header) + counts.tobytes())
    return path
