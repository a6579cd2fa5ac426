"""What a run's result depends on."""

from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from blockspike.app.schemas import register_schemas
from blockspike.files import CONF
from blockspike.runs.identity import content_hash, content_of


def content(*overrides: str, command: str = "train") -> dict[str, Any]:
    register_schemas()
    chosen = ["experiment=demo"] if command == "train" else ["data.path=cell.nwb"]
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return content_of(
            compose(command, [*chosen, "data_config=x", "choices=null", "run_dir=x", *overrides])
        )


def test_recordings_are_content_and_places_of_data_sets_are_not():
    assert content("data.path=other.h5") == content()
    assert content("data.path=other.nwb", command="fit") != content(command="fit")
    assert content_hash(content("data.n_steps=3")) != content_hash(content())


def test_places_and_display_are_no_content():
    places = (
        "output_dir=elsewhere",
        "data_dir=elsewhere",
        "progress=false",
        "threads=1",
        "tags=[mine]",
    )
    assert content(*places) == content()
    assert content("seed=7") != content()


@pytest.mark.parametrize(("monitor", "mode"), [("val/accuracy", "max"), ("val/loss", "min")])
def test_early_stopping_follows_the_monitor(monitor, mode):
    callback = content("callbacks=early_stopping", f"monitor={monitor}")["callbacks"]
    assert callback["early_stopping"]["monitor"] == monitor
    assert callback["early_stopping"]["mode"] == mode
