"""`bs.compose`: the configuration of a command, without a trace in Hydra."""

import hydra
import pytest
import yaml
from hydra import version
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import ConfigAttributeError, OmegaConfBaseException

import blockspike as bs
from blockspike.runs.identity import plain


@pytest.mark.parametrize(
    "arguments",
    [
        "train run_dir=x init_from='outputs/a=1,b' model=se_adlif network.n_hidden=[8,4]",
        "train run_dir=x experiment=shd scheduler=cosine callbacks=[early_stopping] logger=many",
        "fit run_dir=x data.path='cells/one,two.npz' population=gif",
        "fit run_dir=x data.path=a.npz population=gif fit=likelihood",
        "prepare data=shd",
    ],
)
def test_it_is_what_the_command_prints(blockspike, monkeypatch, arguments):
    monkeypatch.setenv("WANDB_MODE", "offline")
    command, *overrides = arguments.split()
    printed = blockspike(command, "--cfg", "job", "--resolve", *overrides).stdout
    expected = yaml.safe_load(printed)
    if command != "fit":
        overrides.append(f"data_dir={expected['data_dir']}")  # as the fixture does
    assert plain(bs.compose(command, overrides)) == expected


def test_a_run_has_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = bs.compose("train", ["model.arp_ms=5", "seed=3"])
    assert config.run_dir == str(tmp_path / "outputs" / "default" / "model.arp_ms=5" / "seed=3")
    assert (config.data_config, config.choices.model) == ("nmnist_sample", "fused")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigAttributeError):
        config.nothing = 1


def test_a_folder_of_further_configurations(tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "tiny.yaml").write_text("defaults: [classifier]\nn_hidden: 3\n")
    assert bs.compose("train", ["network=tiny"], tmp_path).network.n_hidden == 3


def test_a_hydra_of_the_program_stays_as_it_is(tmp_path):
    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
        whole = hydra.compose("mine", return_hydra_config=True)
        HydraConfig.instance().set_config(whole)
        before = (version.getbase(), dict(BaseContainer._resolvers))
        groups = set(ConfigStore.instance().repo)
        bs.compose("train", ["seed=5"])
        with pytest.raises(HydraException, match="n_hiden"):
            bs.compose("train", ["network.n_hiden=5"])
        assert (version.getbase(), dict(BaseContainer._resolvers)) == before
        assert set(ConfigStore.instance().repo) == groups
        assert hydra.compose("mine") == OmegaConf.create({"answer": 42})
        assert HydraConfig.get().job.config_name == "mine"
    HydraConfig.instance().cfg = None
    bs.compose("train")
    assert not GlobalHydra.instance().is_initialized() and not HydraConfig.initialized()


@pytest.mark.parametrize(
    ("command", "overrides", "words"),
    [
        ("train", ["network.n_hiden=3"], "network.n_hiden"),
        ("train", ["+modle=fused"], "^modle: expected a key of train .*model.*, got modle"),
        ("train", ["model=relu"], "model/relu"),
        ("train", ["seed=1.5"], "1.5"),
        ("fit", ["data.dt_ms=fast"], "fast"),
        ("fit", ["data.test_s=0.4"], "test_s"),
        ("fit", [], "data.path"),
    ],
)
def test_a_wrong_override_is_named(command, overrides, words):
    with pytest.raises((ValueError, HydraException, OmegaConfBaseException), match=words):
        bs.compose(command, overrides)
