"""Files of recordings in a folder, and the names of their cells."""

from pathlib import Path

from blockspike.data.ibw import SUFFIX as IBW_SUFFIX
from blockspike.data.recordings import RECORDING_SUFFIXES, is_folder_of_waves, name_of


def find_recordings(path: Path) -> list[Path]:
    """Find the recordings in a folder, at any depth; a path of a recording gives that one.

    A folder of Igor waves is one recording.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_file() or is_folder_of_waves(path):
        return [path]
    there = [(p, p.suffix.lower()) for p in path.rglob("*")]
    folders = {p.parent for p, suffix in there if suffix == IBW_SUFFIX}
    files = sorted([*folders, *(p for p, suffix in there if suffix in RECORDING_SUFFIXES)])
    if not files:
        raise FileNotFoundError(
            f"{path}: expected a recording, a {' or '.join(RECORDING_SUFFIXES)} file or a folder "
            "of them or of .ibw files, got none"
        )
    return files


def cell_names(files: list[Path], folder: Path) -> list[str]:
    """Names of the cells: stems of their files, or paths if stems are not unique.

    AllenSDK names the folder of a cell, not its file.
    """
    names = [f.absolute().parent.name if f.name == "ephys.nwb" else name_of(f) for f in files]
    if len(set(names)) == len(names):
        return names
    return ["_".join(f.relative_to(folder).parts) for f in files]
