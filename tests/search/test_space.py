"""The space of a search: ranges, names, and values as overrides."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from blockspike.search.space import as_override, extremes, read_space, rounded


def space_of(space: dict, *task: str) -> dict:
    cfg = {
        "optimizer": {"lr": 1e-3, "eps": 1e-5},
        "network": {"dropout": 0.0, "n_hidden": 256, "input_events": None},
        "model": {"arp_ms": 10.0, "surrogate": "multi_gaussian"},
        "trainer": {"max_epochs": 3},
        "seed": 0,
        "search": {"space": space},
        "hydra": {"overrides": {"task": list(task)}},
    }
    return read_space(OmegaConf.create(cfg))


def test_ranges_have_the_type_of_their_bounds_and_the_configured_value():
    space = space_of(
        {
            "optimizer": {"lr": [1e-4, 1e-2, "log"], "eps": None},
            "network": {"n_hidden": [16, 64, "log"], "dropout": [0, 1], "input_events": [1, 9]},
            "model": {"surrogate": ["choice", "boxcar", None, 1], "arp_ms": [0, 20]},
        }
    )
    assert space == {
        "model.arp_ms": FloatDistribution(0, 20),
        "model.surrogate": CategoricalDistribution(["boxcar", None, 1]),
        "network.dropout": FloatDistribution(0, 1),
        "network.input_events": IntDistribution(1, 9),
        "network.n_hidden": IntDistribution(16, 64, log=True),
        "optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True),
    }
    assert list(space) == sorted(space)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "search.space: expected KEY="),
        ({"optimizer": {"rate": [0, 1]}}, r"optimizer has eps, lr\), got optimizer.rate"),
        ({"nowhere": {"lr": [0, 1]}}, r"it has no nowhere\), got nowhere.lr"),
        ({"optimizer": {"lr": {"eps": [0, 1]}}}, "got optimizer.lr.eps"),
        ({"seed": [0, 9]}, "search.space.seed: expected a key that trials may differ in"),
        ({"trainer": {"max_epochs": [1, 9]}}, "search.space.trainer.max_epochs"),
        ({"optimizer": {"lr": [1e-2, 1e-4]}}, "optimizer.lr: expected low < high"),
        ({"optimizer": {"lr": [0.0, 1e-4, "log"]}}, "expected 0 < low < high"),
        ({"optimizer": {"lr": [1e-4, 1e-2, "lin"]}}, r"expected \[low, high\]"),
        ({"optimizer": {"lr": [1e-4]}}, r"expected \[low, high\]"),
        ({"optimizer": {"lr": ["a", "b"]}}, r"expected \[low, high\]"),
        ({"optimizer": {"lr": [0.0, float("inf")]}}, r"expected \[low, high\]"),
        ({"optimizer": {"lr": 0.1}}, r"expected \[low, high\]"),
        ({"model": {"surrogate": ["choice", "boxcar"]}}, r"expected \[low, high\]"),
        ({"model": {"surrogate": ["choice", [1], [2]]}}, r"expected \[low, high\]"),
    ],
)
def test_a_wrong_space_is_refused_by_name(space, words):
    with pytest.raises(ValueError, match=words):
        space_of(space)


def test_a_key_that_also_has_a_value_is_refused():
    space = {"optimizer": {"lr": [1e-4, 1e-2]}}
    with pytest.raises(ValueError, match=r"optimizer.lr: expected no value next to search.space"):
        space_of(space, "optimizer.lr=0.1")
    assert space_of(space, "++search.space.optimizer.lr=[1e-4,1e-2]")


def test_floats_are_short_and_stay_in_their_range():
    assert rounded(0.00123456, FloatDistribution(1e-4, 1e-2)) == 0.001235
    assert rounded(0.123449, FloatDistribution(0.0, 0.12345)) == 0.1234
    assert rounded(0.123456, FloatDistribution(0.0, 0.123457)) == 0.123457
    assert rounded(12345678, IntDistribution(1, 10**9)) == 12345678


@pytest.mark.parametrize("value", [True, None, 3, 1e-05, 0.25, "boxcar", "it's, [odd]", "a\\b", ""])
def test_hydra_reads_the_value_of_an_override(value):
    (override,) = OverridesParser.create().parse_overrides([as_override("a.b", value)])
    assert override.value() == value and type(override.value()) is type(value)
    assert not override.is_sweep_override()


def test_extremes_have_both_ends_and_every_option():
    space = {"a": FloatDistribution(0, 1), "b": CategoricalDistribution(["x", "y", "z"])}
    sets = extremes(space)
    assert sets == [{"a": 0, "b": "x"}, {"a": 1, "b": "y"}, {"a": 1, "b": "z"}]
