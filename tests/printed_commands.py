"""The commands that pages print, and of each a short form that a test can run."""

import re
import shlex
import subprocess
from pathlib import Path

from omegaconf import OmegaConf

from blockspike.app.cli import HYDRA_COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_CODE = re.compile(r"^```(\w*)\n(.*?)^```$|`([^`]+)`", re.DOTALL | re.MULTILINE)
_PROGRAM = re.compile(r"(blockspike|make|python|pip|wandb|source|\.venv/bin/\S+) ")
_NAMELESS = "hydra.job.config.override_dirname.exclude_keys"  # what does not name a run's folder

_STEPS = "+trainer.max_steps"  # of the optimiser, in all epochs together
_ONE_BATCH = {
    _STEPS: "1", "trainer.limit_train_batches": "1", "trainer.limit_val_batches": "1",
    "trainer.limit_test_batches": "1", "network.n_hidden": "8", "data.n_steps": "20",
    "data.dt_ms": "20",
}  # fmt: skip
_FEW_STARTS = {_STEPS: "2", "population.n_starts": "4", "fit.first_tau_ms": "null"}
_ONE_CELL = _FEW_STARTS | {"data.n_cells": "1", "data.duration_s": "2"}
_FITS = {
    "experiment=recovery": _ONE_CELL,
    "experiment=recovery_gif": _ONE_CELL,
    "experiment=paper_recordings": {_STEPS: "2"},
}
_FEW_SIZES = {
    "study": "length,tradeoff", "n_steps": "20", "arp_steps": "2", "batch_size": "2",
    "contenders": "fused,blocks,standard", "rounds": "2", "memory": "false", "simulated_s": "0.016",
}  # fmt: skip

_ALL_STEPS = "data.dt_ms=0.05,0.1,0.5,1,2,4,8"
_SLURM = "blockspike train -m sweep=slurm hydra.launcher"
_EXTRAS = ("gpu", "sweep", "search", "abf", "nwb", "ibw", "nir", "wandb", "data", "mlflow")
EXEMPT = {
    "source .venv/bin/activate": "changes the shell that it is typed into",
    "pip install jupyterlab": "downloads packages",
    ".venv/bin/pre-commit install": "changes the clone's git hooks",
    ".venv/bin/jupyter-execute --inplace notebooks/simulate.ipynb notebooks/train.ipynb "
    "notebooks/fit.ipynb": "test_notebook.py runs the notebooks, without writing them",
    "blockspike train data=nmnist_sample network.n_hidden=32 optimizer.lr=1e30 "
    "hydra.run.dir=outputs/wrong": "goes wrong, as it should; test_sweeps.py has such a run",
    "python tools/guard_cost.py --data data/hd_lauscher_sample.h5": "takes minutes",
    "make endurance": "takes long, and 14 GiB; test_endurance.py runs its short form",
    "python tools/killed_sweep.py data": "minutes; test_sweeps.py runs its short form",
    "python tools/least_errors.py": "a minute, 3 GB; test_least_errors.py runs its short form",
    "python tools/killed_search.py data": "minutes; test_search.py runs its short form",
    **{f"pip install 'blockspike[{extra}]'": "downloads packages" for extra in _EXTRAS},
    "pip install blockspike": "tools/wheel_check.py installs the wheel",
    "pip install .": "the first step of every target that CI runs",
    "pip install '.[data,sweep]'": "downloads packages",
    "blockspike prepare data=nmnist data.download=true": (
        "downloads 1.2 GB; test_download.py has a small server"
    ),
    "blockspike prepare data=shd data.download=true": (
        "downloads 0.2 GB; test_download.py has a small server"
    ),
    "blockspike prepare data=ssc data.download=true": (
        "downloads gigabytes; test_download.py has a small server"
    ),
    **dict.fromkeys(
        (
            "blockspike prepare data=tonic data.dataset=DVSGesture data.download=true",
            "blockspike train data=tonic data.dataset=DVSGesture data.pooling=4",
        ),
        "downloads gigabytes; test_tonic_events.py has a small server",
    ),
    **dict.fromkeys(
        (
            "blockspike prepare data=sequential_mnist data.download=true",
            "blockspike train data=sequential_mnist",
            "blockspike prepare data=permuted_mnist data.download=true",
        ),
        "downloads MNIST; test_sequential_mnist.py has a small server",
    ),
    "pip install aedat": "downloads a package",
    "pip install neurobench": "test_neurobench.py installs it",
    "blockspike prepare data=allen data.download=true": (
        "downloads 146 cells; test_allen.py has synthetic ones"
    ),
    f"blockspike fit -m experiment=paper_recordings {_ALL_STEPS}": "needs those 146 cells",
    f"blockspike fit -m experiment=recordings {_ALL_STEPS}": "needs those 146 cells",
    "blockspike train -m experiment=paper_nmnist model=fused,blocks "
    "model.arp_ms=10,20,30,40,50 seed=0,1,2": "needs the whole of N-MNIST",
    **{
        f"blockspike train -m experiment=paper_{name} "
        f"model.surrogate=multi_gaussian,fast_sigmoid,boxcar {values} seed=0,1,2": (
            "needs the whole of SHD"
        )
        for name, values in (
            ("surrogates", "model.arp_ms=20,40,60,80,100"),
            ("detach", "model.detach_spikes=true,false"),
        )
    },
    "blockspike train -m experiment=paper_shd model=fused,blocks "
    "model.arp_ms=20,40,60,80,100 seed=0,1,2": "needs the whole of SHD",
    **dict.fromkeys(
        (
            "blockspike inspect 171116sh_0018.abf",
            "blockspike fit -m data.path=171116sh_0018.abf 'data.train_sweeps=[6,8,10,12,14,16]' "
            "'data.test_sweeps=[7,9,11,13,15]' data.held_out=0 fit=likelihood "
            "population=lif,alif,gif",
            "blockspike report outputs/fit/171116sh_0018/…,population=gif/seed=0",
        ),
        "needs a file of pyABF",
    ),
    "make nir-peers": "downloads four simulators; test_nir_peers.py does without them",
    "make setup-locked": "downloads 3 GB; test_lock.py compares the file with pyproject.toml",
    "make lock": "changes requirements.lock",
    "pip install --require-hashes -r requirements.lock": "downloads 3 GB",
    "make gpu-check": "needs a CUDA GPU; test_gpu_check.py runs its parts",
    "blockspike benchmark device=cuda": "needs a CUDA GPU",
    f"{_SLURM}.partition=long hydra.launcher.timeout_min=600 experiment=paper_shd seed=0,1,2": (
        "needs a Slurm cluster"
    ),
    f"{_SLURM}.nodes=2 hydra.launcher.tasks_per_node=4 hydra.launcher.gpus_per_node=4 "
    "trainer=ddp +trainer.num_nodes=2 trainer.devices=4 experiment=paper_shd seed=0": (
        "needs a Slurm cluster"
    ),
    "blockspike search shd": "needs the whole of SHD",
    "blockspike fit data.path=my_cell.npz population=gif fit=likelihood fit.voltage_weight=1 "
    "data.compensation=aec": "needs a recording with voltage; test_fit.py has a synthetic one",
    **dict.fromkeys(
        (
            f"blockspike fit -m data.path=qsnmc2007_a.npz data.n_folds=3 data.fold=0,1,2 {rest}"
            for rest in (
                "population=lif,alif,glif,gif n_bootstrap=0",
                "population=lif,alif,glif,gif n_bootstrap=0 fit=likelihood data.held_out=0",
                "population=gif population.threshold_coupling=true n_bootstrap=0 fit=likelihood "
                "data.held_out=0",
            )
        ),
        "needs recordings without a licence",
    ),
    **dict.fromkeys(
        (
            "blockspike fit -m data.path=l5_pyramidal_noise_9_repeats.npz 'data.train_s=[[0,8]]' "
            f"'data.test_s=[[8,15]]' population=gif n_bootstrap=0 seed=0,1,2{rest}"
            for rest in (
                " data.compensation=aec fit.voltage_weight=0,1 population.n_starts=8 "
                "trainer.max_epochs=120 fit=likelihood data.held_out=0",
                " data.compensation=aec fit.voltage_weight=0,1 population.n_starts=32 "
                "trainer.max_epochs=160",
                ",3,4 data.compensation=aec fit.voltage_weight=0.3,1",
            )
        ),
        "needs a recording without a licence",
    ),
    "blockspike fit -m data.path=l5_pyramidal_noise_9_repeats.npz 'data.train_s=[[1.6,8]]' "
    "'data.test_s=[[8,15]]' population=gif population.threshold_coupling=true fit=likelihood "
    "data.held_out=0 fit.prior_weight=0.5 fit.voltage_weight=1 data.compensation=aec n_bootstrap=0 "
    "seed=0,1,2,3,4": "needs a recording without a licence",
    "blockspike collect --experiment folds --by model --metric val_accuracy_with_views": (
        "needs folds scored by a loop of the shell; test_folds.py runs both"
    ),
    "wandb leet": "takes over the terminal",
    **dict.fromkeys(("wandb login", "wandb sweep", "wandb agent"), "needs wandb's server"),
    "wandb sync outputs/*/*/seed=*/wandb/offline-run-*": "needs wandb's server",
    "wandb sync outputs/fit/*/*/seed=*/wandb/offline-run-*": "needs wandb's server",
    "python -m blockspike.app.wandb_dashboard ENTITY/PROJECT": (
        "needs wandb's server; test_wandb_dashboard.py does without"
    ),
}
_OF_CHECKOUT = re.compile(r"make |\.venv/|source |python (tests|tools)/|pip install '?\.")


def python_and_commands(page: Path) -> list[tuple[str, str]]:
    """("python", source) and ("command", line) in the order in which a page prints them."""
    found: list[tuple[str, str]] = []
    for language, block, inline in _CODE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            found.append(("python", block))
            continue
        for line in [inline] if inline else block.splitlines():
            command = " ".join(line.partition(" #")[0].split())
            if _PROGRAM.match(command):
                found.append(("command", command))
    return found


def run_by_ci() -> set[str]:
    """The commands of make that `.ci/run` runs as they are printed."""
    text = (ROOT / ".ci" / "run").read_text()
    lines = re.findall(r"^ *(?:[A-Z_]+=\S+ )?make ((?:[a-z-]+ )+)", text, re.MULTILINE)
    return {f"make {target}" for line in lines for target in line.split()}


def commands(page: Path) -> set[str]:
    """The commands that a page prints."""
    return {text for kind, text in python_and_commands(page) if kind == "command"}


def to_run(page: Path) -> list[tuple[str, str]]:
    """What a page prints and nothing else runs, each once, in order."""
    elsewhere = set(EXEMPT) | run_by_ci()
    return [x for x in dict.fromkeys(python_and_commands(page)) if x[1] not in elsewhere]


def is_of_checkout(command: str) -> bool:
    """Whether a command is for a checkout of the source and not for an installed package."""
    return bool(_OF_CHECKOUT.match(command))


def parts(command: str) -> list[list[str]]:
    """The words of a command; of make, of every command of blockspike that it would run.

    Raises:
        CalledProcessError: make knows no such target.
    """
    if not command.startswith("make "):
        return [shlex.split(command)]
    make = ["make", "--dry-run", *shlex.split(command)[1:]]
    shown = subprocess.run(make, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    lines = [line for line in shown.splitlines() if re.search(r"/bin/blockspike|-m blocksp", line)]
    words = [shlex.split(line) for line in lines]
    return [[Path(first).name, *others] for first, *others in words]


def composed(words: list[str]) -> list[list[str]]:
    """Arguments of blockspike that print a configuration; of a sweep, one with each value."""
    _, name, *arguments = words
    if name not in (*HYDRA_COMMANDS, "search"):
        return [[name, "--help"]]
    if name == "search":
        shared = [x for x in arguments[1:] if not x.startswith("search.")]
        return [["train", "--cfg", "job", *shared]]
    choices = []
    for argument in (a for a in arguments if a != "-m"):
        key, equals, value = argument.partition("=")
        values = value.split(",") if "[" not in value else [value]
        choices.append([key + equals + x for x in values])
    n = max(map(len, choices), default=1)
    return [[name, "--cfg", "job", *(c[min(i, len(c) - 1)] for c in choices)] for i in range(n)]


def short(words: list[str], data_dir: Path, n_runs: int = 2) -> list[str]:
    """Arguments of blockspike for the same with few steps, batches, cells, and runs of a sweep.

    What is added does not name the run's folder, so that the next command finds it.
    """
    _, name, *arguments = words
    if name not in (*HYDRA_COMMANDS, "search", "benchmark"):
        return [name, *arguments]
    arguments = ["data.path=my_cell.npz" if a == "data.path=FILE" else a for a in arguments]
    values = dict(a.split("=", 1) for a in arguments if "=" in a)
    flags = [a for a in arguments if "=" not in a]
    if name == "benchmark":
        values = _FEW_SIZES
    if name == "search":
        values |= {**_ONE_BATCH, "search.n_trials": "2"}
        del values["network.n_hidden"]  # it is in the space
    elif name in ("train", "fit") and "--help" not in flags:
        few = _ONE_BATCH
        if name == "fit":
            few = next((few for fit, few in _FITS.items() if fit in arguments), _FEW_STARTS)
        if {"data=hd_lauscher", "experiment=digits", "experiment=se_adlif"} & set(arguments):
            few = {**few, "data.path": f"{data_dir / 'hd_lauscher_sample.h5'}"}
        added = {key: value for key, value in few.items() if key not in values}
        values = _few_runs(values, n_runs) | added
        nameless = [*_nameless(), *(key.removeprefix("+") for key in added)]
        values[_NAMELESS] = f"[{','.join(nameless)}]"
    return [name, *flags, *(f"{key}={value}" for key, value in values.items())]


def _few_runs(overrides: dict[str, str], n_values: int) -> dict[str, str]:
    """So many values of the first choice that has several, and one of the others."""
    chosen = {}
    for key, value in overrides.items():
        chosen[key] = value
        if "," in value and "[" not in value:
            chosen[key] = ",".join(value.split(",")[:n_values])
            n_values = 1
    return chosen


def _nameless() -> list[str]:
    return list(OmegaConf.select(OmegaConf.load(ROOT / "conf" / "run_folder.yaml"), _NAMELESS))
