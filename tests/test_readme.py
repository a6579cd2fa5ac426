"""Every command and every Python block of the README runs (make demo: in .ci/run)."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# Same commands, less work: appended to each training command.
QUICK = (
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "network.n_hidden=8",
    "data.n_steps=20",
    "data.dt_ms=20",
)


FIT_COMMAND = "blockspike train experiment=fit_my_recording data.path=my_cell.npz"
FIT_PAGE = (ROOT / "docs" / "fit_your_own_neuron.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_python_blocks_run():
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_blockspike_commands_run(blockspike):
    commands = [
        shlex.split(line)
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("blockspike")
    ]
    assert len(commands) >= 5
    for _, name, *arguments in commands:
        if name == "train":
            sweeps = any(a.startswith("network.n_hidden") and "," in a for a in arguments)
            quick = [q for q in QUICK if not (sweeps and "n_hidden" in q)]
            # Folders are named by the overrides: keep the name that the README's next line uses.
            chosen = ",".join(sorted(a for a in arguments if not a.startswith(("-", "experiment"))))
            sweep = "-m" in arguments
            place = [] if sweep else [f"hydra.run.dir='outputs/mine/{chosen}/seed=0'"]
            blockspike(name, *arguments, *quick, *place)
        else:
            blockspike(name, *arguments)


def test_the_page_on_fits_runs_from_file_to_neuron(blockspike, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", FIT_PAGE, re.DOTALL):
        if language == "python":
            exec(compile(block, "fit_your_own_neuron.md", "exec"), {})
            continue
        _, name, *arguments = shlex.split(block)
        if name == "train":  # the folder keeps the name that the page uses
            arguments += ["trainer.max_epochs=4", "model.n_starts=4"]
            arguments += ["hydra.run.dir='outputs/fit/my_cell/default/seed=0'"]
        blockspike(name, *arguments)
    assert FIT_COMMAND in README and FIT_COMMAND in FIT_PAGE


def test_make_targets_exist():
    named = set(re.findall(r"`?make ([a-z-]+)", README)) - {"one"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "help", "bench"} <= named
    assert named <= targets, named - targets


def test_the_map_and_the_links_are_true():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"^ {2,4}([a-z_]+(?:\.py|/))", README, re.MULTILINE):
        assert list((ROOT / "src" / "blockspike").rglob(name.rstrip("/"))), name
