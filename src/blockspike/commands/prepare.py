"""`blockspike prepare`: recordings → one prepared file, downloaded first if asked."""

from omegaconf import DictConfig

from blockspike.config import build_data


def prepare(cfg: DictConfig) -> None:
    """Make the prepared file of the data set and check it."""
    data = build_data(cfg)
    path = data.prepare()
    data.setup()
    print(f"{data.name}: {len(data.train)} training and {len(data.test)} test recordings in {path}")
