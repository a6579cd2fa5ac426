"""`bs.compose`: the configuration of a command, without a trace in Hydra."""

import hydra
import pytest
import yaml
from hydra import version
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import ConfigAttributeError

import blockspike as bs
from blockspike.runs.identity import plain


@pytest.mark.parametrize(
    "arguments",
    [
        "train run_dir=x init_from=outputs/a=1,b model=se_adlif network.n_hidden=[8,4]",
        "train run_dir=x experiment=shd scheduler=cosine callbacks=[early_stopping] logger=many",
        "fit run_dir=x data.path=cells/one,two.npz population=gif",
        "figures figure=sweep color=seed,data",
        "benchmark study=length,layers n_steps=20",
    ],
)
def test_it_is_what_the_command_prints(blockspike, monkeypatch, arguments):
    monkeypatch.setenv("WANDB_MODE", "offline")
    command, *overrides = arguments.split()
    printed = blockspike(command, "--cfg", "job", "--resolve", *overrides).stdout
    expected = yaml.safe_load(printed)
    if command == "train":
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


def test_a_folder_of_ones_own_configurations(tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "tiny.yaml").write_text("defaults: [classifier]\nn_hidden: 3\n")
    assert bs.compose("train", ["network=tiny"], tmp_path).network.n_hidden == 3
    with pytest.raises(ValueError, match="^network: expected one of classifier, got tiny"):
        bs.compose("train", ["network=tiny"])
    with pytest.raises(FileNotFoundError, match="config_dir: expected a folder, got 'nowhere'"):
        bs.compose("train", [], "nowhere")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seed: x", "^seed: expected an integer, got another value in experiment/mine.yaml$"),
        ("model: {nosuch: 3}", "^model.nosuch: expected a key of model .*, got nosuch$"),
        ("model: ALIF", "^experiment/mine.yaml: Merge error: str is not a subclass of ALIFLayer"),
    ],
)
def test_what_is_wrong_in_ones_own_file_is_named(content, words, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    with pytest.raises(ValueError, match=words):
        bs.compose("train", ["experiment=mine"], tmp_path)


def test_a_hydra_of_the_program_stays_as_it_is(tmp_path):
    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
        whole = hydra.compose("mine", return_hydra_config=True)
        HydraConfig.instance().set_config(whole)
        before = (version.getbase(), dict(BaseContainer._resolvers))
        groups = set(ConfigStore.instance().repo)
        bs.compose("train", ["seed=5"])
        with pytest.raises(ValueError, match="n_hiden"):
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
        ("trian", [], "command: expected one of prepare, train, .*, got 'trian'"),
        ("train", "seed=1", "overrides: expected a list of key=value, got 'seed=1'"),
        ("train", ["network.n_hiden=3"], r"network.n_hiden: expected a key of network \(n_h"),
        ("train", ["model=blocks", "model.arp=3"], "model.arp: expected a key of model=blocks"),
        ("train", ["nosuch=1"], "nosuch: expected a key of the configuration .*, seed, "),
        ("train", ["trainer.nosuch=1"], r"trainer \(.*\), got nosuch; \+trainer.nosuch=… adds one"),
        ("train", ["model=relu"], "^model: expected one of adlif, blocks, .*, got relu$"),
        ("fit", ["network=classifier"], "^network: expected a group or a key of this command"),
        ("fit", ["data.test_s=0.4"], "^data.test_s: expected a list, got 0.4$"),
        ("fit", ["data.test_s=[1,2]"], r"^data.test_s: expected a list of lists, got \[1,2\]$"),
        ("fit", ["data.dt_ms=fast"], "^data.dt_ms: expected a number, got fast$"),
        (
            "fit",
            ["experiment=recovery", "population=glif"],
            "^population.arp_ms: expected a list, got another value in experiment/recovery.yaml$",
        ),
        ("fit", ["+data.path=[1]"], "^data.path: Cannot convert 'list' to string"),
        ("train", ["seed=1.5"], "^seed: expected an integer, got 1.5$"),
        ("train", ["model=schema"], "model: expected one of adlif"),
        ("train", ["seed=0,1"], "Ambiguous value for argument 'seed=0,1'"),
        ("train", ["=1"], "override: expected key=value, got =1"),
        ("train", ["network.n_layers=many"], "network.n_layers: expected an integer.*many"),
        ("fit", [], "^data.path: expected a value, got nothing; set it with data.path=…$"),
        ("fit", ["a.npz"], "^override: expected key=value, such as data.path=a.npz, got a.npz$"),
        ("train", ["demo"], "^override: expected key=value, got demo$"),
    ],
)
def test_what_is_wrong_is_named(command, overrides, words):
    with pytest.raises(ValueError, match=words):
        bs.compose(command, overrides)
