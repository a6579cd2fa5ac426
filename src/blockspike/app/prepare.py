"""`blockspike prepare`: download recordings if asked to, check them and make them ready."""

import sys

from omegaconf import DictConfig

from blockspike.app.build import build_data
from blockspike.data.datamodule import EventDataModule
from blockspike.data.recordings_datamodule import RecordingsDataModule


def prepare(cfg: DictConfig) -> None:
    """Write and check the prepared file of a data set, or check each cell's recordings."""
    data = build_data(cfg)
    if isinstance(data, RecordingsDataModule):
        data.prepare()
        data.setup()
        for reason in data.failed.values():
            print(f"left out: {reason}", file=sys.stderr)
        cells = "1 cell" if len(data.names) == 1 else f"{len(data.names)} cells"
        print(f"{data.title}: {cells} can be fitted in {data.path}")
        return
    if not isinstance(data, EventDataModule):
        got = f"{type(data).__module__}.{type(data).__qualname__}"
        raise ValueError(f"data: expected an EventDataModule or RecordingsDataModule, got {got}")
    is_unread = data.path.exists() and data.raw.exists()
    path = data.prepare()
    data.setup()
    if is_unread:
        advice = f"to prepare {data.raw}, delete that file or name another data.path"
        print(f"{path} was there already; {advice}", file=sys.stderr)
    own = "" if data.val is data.train else f", {len(data.val)} validation"
    counts = f"{len(data.train)} training{own} and {len(data.test)} test recordings"
    print(f"{data.name}: {counts} in {path}")
