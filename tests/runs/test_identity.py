"""What a run's result depends on: options that are off are not part of it."""

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


@pytest.mark.parametrize(
    ("off", "on"),
    [
        ("optimizer.fused=null", "optimizer.fused=true"),
        ("training.recompute_steps=null", "training.recompute_steps=5"),
        ("training.lr_factors=null", "training.lr_factors={beta:0.1}"),
        ("trainer.accumulate_grad_batches=1", "trainer.accumulate_grad_batches=2"),
        ("trainer.gradient_clip_algorithm=null", "trainer.gradient_clip_algorithm=value"),
        ("training.rate_upper_factor=0", "training.rate_upper_factor=1"),
        ("model.batch_norm=false", "model.batch_norm=true"),
        ("model.recurrent_dropout=0", "model.recurrent_dropout=0.2"),
        ("model.recurrent_max_delay=0", "model.recurrent_max_delay=5"),
        ("network.skip_steps=0", "network.skip_steps=5"),
        ("network.init=default", "network.init=kaiming_uniform"),
        ("network.recurrent_init=default", "network.recurrent_init=orthogonal"),
        ("trainer.precision=32-true", "trainer.precision=bf16-mixed"),
        ("init_from=null", "init_from=nmnist_sample_se_adlif"),
    ],
)
def test_an_option_that_is_off_leaves_the_hash_as_it_was(off, on):
    assert content_hash(content(off)) == content_hash(content()) != content_hash(content(on))
    assert "fused" not in content()["optimizer"] and "training" not in content()


def test_a_fold_of_speakers_is_content_and_none_is_not():
    digits = ("experiment=shd", "data=hd_lauscher_sample")
    whole = content(*digits)
    assert "fold" not in whole["data"]
    folds = [content(*digits, f"data.fold={fold}") for fold in range(2)]
    assert len({content_hash(x) for x in [whole, *folds]}) == 3


@pytest.mark.parametrize(
    ("option", "value"), [("unchanged", 0.25), ("replaced", 0.1), ("channel_time_jitter_ms", 10)]
)
def test_a_change_of_recordings_is_content_and_none_is_not(option, value):
    digits = ("experiment=shd", "data=hd_lauscher_sample")
    assert option not in content(*digits)["data"]
    assert content(*digits, f"data.{option}={value}") != content(*digits)


def test_a_fit_of_every_electrode_has_the_hash_of_a_fit_without_the_option():
    chosen = content("data.electrode=soma", command="fit")
    assert chosen["data"].pop("electrode") == "soma" and chosen == content(command="fit")


@pytest.mark.parametrize(
    ("off", "on"),
    [
        ("data.compensation=null", "data.compensation=aec"),
        ("fit.voltage_weight=0", "fit.voltage_weight=1"),
        ("fit.prior_weight=0", "fit.prior_weight=1"),
    ],
)
@pytest.mark.parametrize("fit", ["multistart", "likelihood"])
def test_voltage_and_prior_are_no_content_of_a_fit_without_them(off, on, fit):
    plain = content(f"fit={fit}", command="fit")
    assert "compensation" not in plain["data"]
    assert not {"voltage_weight", "prior_weight"} & set(plain["fit"])
    assert content(f"fit={fit}", off, command="fit") == plain
    assert content(f"fit={fit}", on, command="fit") != plain


def test_places_and_display_are_no_content():
    places = (
        "output_dir=elsewhere",
        "data_dir=elsewhere",
        "progress=false",
        "threads=1",
        "tags=[mine]",
        "extend=outputs/mine",
    )
    assert content(*places) == content()
    assert content("search=shd", "pruning=[null,0.5]", "experiment_name=demo") == content()
    assert content("seed=7") != content()


def test_runs_with_drawn_delays_are_others_than_those_with_spread_weights():
    assert "delays" not in content()
    assert content("model.max_delay=5")["delays"] == "drawn"


@pytest.mark.parametrize(("monitor", "mode"), [("val/accuracy", "max"), ("val/loss", "min")])
def test_early_stopping_follows_the_monitor(monitor, mode):
    callback = content("callbacks=early_stopping", f"monitor={monitor}")["callbacks"]
    assert callback["early_stopping"]["monitor"] == monitor
    assert callback["early_stopping"]["mode"] == mode


def test_a_fit_without_warm_up_before_training_has_the_hash_that_it_had():
    chosen = ["data.train_s=[[2,3]]", "data.test_s=[[4,5]]"]
    off = content(*chosen, command="fit")
    assert "train_warm_up_s" not in off["data"]
    on = content(*chosen, "data.train_warm_up_s=1", command="fit")
    assert on["data"]["train_warm_up_s"] == 1.0 and content_hash(on) != content_hash(off)
