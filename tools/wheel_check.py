"""Install blockspike's wheel in a fresh environment and run what README and docs print there.

    python tools/wheel_check.py [--wheel FILE] [--venv FOLDER] [--jobs 2] [--page PAGE ...]

The wheel is built twice, from the tracked files and from their sdist, and both must have the same
content. It is installed in a new virtual environment. There the commands and Python blocks of each
page run one after another, in an empty folder per page outside any checkout. They are shortened by
`tests/printed_commands.py`, which also lists what is not run and why; a sweep has one run. The
notebooks run too. Only pip needs the network. If anything fails, it is listed and the exit code
is 1.

With --wheel, nothing is built. With --venv, nothing is installed except what the pages themselves
install. Start it with a Python that has blockspike's requirements: they are needed to make the
files that the pages use.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from page_files import write_lab  # noqa: E402
from printed_commands import (  # noqa: E402
    EXEMPT,
    PAGES,
    is_of_checkout,
    python_and_commands,
    short,
)

NOTEBOOKS = tuple(sorted((ROOT / "notebooks").glob("*.ipynb")))
_LONGEST_S = 600
_SHOWN_LINES = 15  # of a failed command's output
_EXTRA = re.compile(r"pip install '?blockspike\[\w+\]'?$")
_OF_CONTRIBUTORS = ROOT / "CONTRIBUTING.md"


@dataclass(frozen=True)
class Step:
    """A command or code block of a page: text to show, and words to run or why it is skipped."""

    text: str
    words: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def changes_environment(self) -> bool:
        """Whether it must run alone."""
        return self.words[:1] == ("pip",)


@dataclass(frozen=True)
class Result:
    """The outcome of a step; `output` is empty if it succeeded."""

    page: str
    text: str
    output: str = ""


def steps_of(page: Path, data_dir: Path) -> list[Step]:
    """The steps that a page prints, each once, in order, or those that run a notebook.

    `data_dir` holds the prepared HD-Lauscher sample.
    """
    if page in NOTEBOOKS:
        needed = ("pip", "install", "--quiet", "nbclient", "ipykernel")
        return [
            Step("pip install nbclient ipykernel", needed),
            Step(f"jupyter-execute {page.name}", ("jupyter-execute", page.name)),
        ]
    steps, earlier = [], ""
    for kind, text in dict.fromkeys(python_and_commands(page)):
        step = _step(kind, text, data_dir)
        if kind == "python":  # a block that imports nothing of ours continues the ones before
            earlier = text if "import blockspike" in text else f"{earlier}\n{text}"
            step = Step(step.text, ("python", "-c", earlier))
        steps.append(step)
    return steps


def _step(kind: str, text: str, data_dir: Path) -> Step:
    if kind == "python":
        title = next(line for line in text.splitlines() if line.strip())
        return Step(f"python: {title}", ("python", "-c", text))
    if is_of_checkout(text):
        return Step(text, skipped="needs a checkout")
    if _EXTRA.match(text):
        return Step(text, ("pip", "install", "--quiet", text.split()[2].strip("'")))
    if text in EXEMPT:
        return Step(text, skipped=EXEMPT[text])
    words = shlex.split(text)
    if words[0] == "blockspike":
        return Step(text, ("blockspike", *short(words, data_dir, n_runs=1)))
    return Step(text, tuple(words))


class Environment:
    """A virtual environment for steps: several run concurrently, unless one changes it."""

    def __init__(self, folder: Path):
        self.bin = folder / "bin"
        self._free = threading.Condition()
        self._running, self._changing = 0, False
        self.changes: set[tuple[str, ...]] = set()  # that steps have made

    def run(self, words: Sequence[str], cwd: Path, **variables: str) -> str | None:
        """Run a program of the environment; returns its output if it failed, else None."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        path = os.pathsep.join([str(self.bin), os.environ.get("PATH", "")])
        environment = {**kept, "PATH": path, "WANDB_MODE": "offline", **variables}
        command = [str(self.bin / words[0]), *words[1:]]
        try:
            done = subprocess.run(
                command, cwd=cwd, env=environment, timeout=_LONGEST_S, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"timed out after {_LONGEST_S} s"
        return f"exit code {done.returncode}\n{done.stdout}" if done.returncode else None

    @contextmanager
    def use(self, alone: bool) -> Iterator[None]:
        """Hold the environment, shared or exclusively."""
        with self._free:
            self._free.wait_for(lambda: not self._changing and not (alone and self._running))
            self._running, self._changing = self._running + 1, alone
        try:
            yield
        finally:
            with self._free:
                self._running, self._changing = self._running - 1, False
                self._free.notify_all()


def build(folder: Path) -> Path:
    """Build the sdist and a wheel from it; compare it with a wheel built from the files.

    Raises:
        SystemExit: the wheels differ.
    """
    source, builder = folder / "source", folder / "builder"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    _call(sys.executable, "-m", "venv", builder)
    python = builder / "bin" / "python"
    _call(python, "-m", "pip", "install", "--quiet", "build")
    wheels = []
    for kind, options in (("sdist", []), ("files", ["--wheel"])):
        _call(python, "-m", "build", *options, "--outdir", folder / kind, source)
        wheels += (folder / kind).glob("*.whl")
    contents = [_content(wheel) for wheel in wheels]
    if contents[0] != contents[1]:
        names = sorted({name for name, _ in contents[0].items() ^ contents[1].items()})
        sys.exit(f"the wheels of the sdist and of the files differ: {', '.join(names)}")
    return wheels[0]


def _content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def run_page(page: Path, environment: Environment, data_dir: Path, folder: Path) -> list[Result]:
    """Run a page's steps in an empty folder and print a line for each; returns their results."""
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name
    here = folder / name.replace("/", "_")
    here.mkdir()
    shutil.copy(data_dir / "my_cell.npz", here)
    variables = write_lab(here) if page.stem == "extend" else {}
    if page in NOTEBOOKS:
        shutil.copy(page, here)
    results = []
    for step in steps_of(page, data_dir):
        if step.skipped:
            print(f"{name}: not run    {step.text} ({step.skipped})", flush=True)
        else:
            results.append(_run(name, step, environment, here, variables))
    return results


def _run(
    page: str, step: Step, environment: Environment, folder: Path, variables: dict[str, str]
) -> Result:
    """Run a step, unless it would change the environment as an earlier one has."""
    with environment.use(alone=step.changes_environment):
        if step.words in environment.changes:
            print(f"{page}: not run    {step.text} (an earlier page has)", flush=True)
            return Result(page, step.text)
        if step.changes_environment:
            environment.changes.add(step.words)
        start = time.monotonic()
        output = environment.run(step.words, folder, **variables)
    how = "ok" if output is None else "FAILED"
    print(f"{page}: {how} {time.monotonic() - start:4.0f} s  {step.text}", flush=True)
    return Result(page, step.text, output or "")


def prepare(environment: Environment, folder: Path) -> Path:
    """Make a folder with the files that several pages need: prepared sample, recorded cell.

    Raises:
        SystemExit: a command failed, so the installation does not work.
    """
    data_dir = folder / "data"
    data_dir.mkdir()
    write_cell = "from page_files import write_cell; write_cell('my_cell.npz')"
    for words, variables in (
        (("blockspike", "prepare", "data=hd_lauscher_sample", "data_dir=."), {}),
        (("python", "-c", write_cell), {"PYTHONPATH": str(ROOT / "tests")}),
    ):
        output = environment.run(words, data_dir, **variables)
        if output is not None:
            sys.exit(f"{' '.join(words)}: {output}")
    return data_dir


def install(folder: Path, wheel: Path) -> Path:
    """Install the wheel and its requirements in a new virtual environment; returns its folder."""
    venv = folder / "venv"
    _call(sys.executable, "-m", "venv", venv)
    _call(venv / "bin" / "pip", "install", "--quiet", wheel)
    return venv


def _call(*words: str | Path) -> None:
    """Run a program; if it fails, exit with its output."""
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, install and run the pages; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--wheel", type=Path, help="wheel to install instead of building one")
    parser.add_argument("--venv", type=Path, help="environment to use as it is")
    parser.add_argument("--jobs", type=int, default=2, help="number of concurrent pages")
    parser.add_argument("--page", type=Path, nargs="+", help="pages to run (default: all)")
    options = parser.parse_args(arguments)
    pages = [page for page in PAGES if page != _OF_CONTRIBUTORS]
    pages[1:1] = NOTEBOOKS  # after the README, which has no Jupyter
    pages = [page.resolve() for page in options.page] if options.page else pages
    with tempfile.TemporaryDirectory(prefix="blockspike-wheel-") as name:
        folder = Path(name)
        venv = options.venv
        if venv is None:
            wheel = options.wheel or build(folder)
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
            venv = install(folder, wheel.resolve())
        environment = Environment(venv.absolute())
        data_dir = prepare(environment, folder)
        with ThreadPoolExecutor(options.jobs) as pool:
            runs = [pool.submit(run_page, p, environment, data_dir, folder) for p in pages]
            results = [result for run in runs for result in run.result()]
    return _report(results)


def _report(results: Sequence[Result]) -> int:
    failed = [result for result in results if result.output]
    print(f"{len(results)} commands ran, {len(failed)} failed")
    for result in failed:
        end = "\n    ".join(result.output.strip().splitlines()[-_SHOWN_LINES:])
        print(f"{result.page}: {result.text}\n    {end}")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
