"""Current-clamp sweeps of NWB files: NWB 1 of the Allen Cell Types Database, and NWB 2."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from blockspike.data.hdf5 import HDF5_ERRORS, attribute, open_hdf5
from blockspike.data.nwb1 import allen_sweeps
from blockspike.data.nwb2 import read_nwb2
from blockspike.data.sweeps import Sweep, choose, choose_electrode, one_line, text_of


def read_sweeps(
    path: Path,
    stimuli: Sequence[str] | None = None,
    sweeps: Sequence[int] | None = None,
    electrode: str | int | None = None,
) -> Generator[Sweep]:
    """Read current-clamp sweeps one by one, in the order of their numbers.

    Args:
        path: NWB 1 of the Allen Cell Types Database, or NWB 2.
        stimuli: names of the stimuli to read, upper or lower case; None = all.
        sweeps: numbers of the sweeps to read; None = all. Sweeps in voltage clamp or without a
            current (I = 0) that are not listed here are skipped.
        electrode: name or number of an electrode of NWB 2; None = the only one.

    Raises:
        SeveralElectrodesError: `electrode` is None, and several are in current clamp.
        ValueError: an incomplete NWB file, a missing key, sweep, stimulus or unit, a voltage-clamp
            sweep, a current that is empty, NaN or infinite, implausible magnitudes, or a missing
            pynwb; names the file and the sweep.
    """
    try:
        with open_hdf5(path) as file:
            is_nwb2 = text_of(attribute(file, "nwb_version", "")).startswith("2")
            if not is_nwb2:
                choose_electrode(path, [], electrode)
                for stored in choose(path, allen_sweeps(path, file), stimuli, sweeps):
                    yield stored.read()
        if is_nwb2:
            yield from read_nwb2(path, stimuli, sweeps, electrode)
    except (*HDF5_ERRORS, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a complete NWB file ({one_line(error)})") from error
