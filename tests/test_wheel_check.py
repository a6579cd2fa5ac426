"""`tools/wheel_check.py`: which commands of a page it runs, and how it reports failures."""

import re
import subprocess
import sys
import threading
import tomllib
from fnmatch import fnmatch

import pytest

import wheel_check
from page_files import write_cell
from printed_commands import PAGES, ROOT
from wheel_check import steps_of

_MAKE = re.compile(r"(?:`|<code>)make [a-z]")


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CONTRIBUTING.md"], ids=str)
def test_every_command_of_a_page_is_run_or_skipped_for_a_reason(page, tmp_path):
    for step in steps_of(page, tmp_path):
        assert bool(step.words) != bool(step.skipped), step.text
        if step.words:
            assert step.words[0] in ("blockspike", "python", "pip"), step.text
        else:
            assert step.skipped == "needs a checkout" or len(step.skipped) > 10, step.text


def test_most_of_what_is_printed_is_run(tmp_path):
    run = [step.text for page in PAGES for step in steps_of(page, tmp_path) if step.words]
    assert sum(text.startswith("blockspike ") for text in run) >= 30
    assert any(text.startswith("python: import torch") for text in run)
    assert "pip install 'blockspike[sweep]'" in run


@pytest.mark.slow
def test_a_failed_command_is_listed(tmp_path, data_dir, monkeypatch, capsys):
    write_cell(data_dir / "my_cell.npz")
    monkeypatch.setattr(wheel_check, "prepare", lambda environment, folder: data_dir)
    page = tmp_path / "page.md"
    page.write_text(
        "`blockspike status`, `make test`, `blockspike --help`\n\n```python\nprint(1 / 0)\n```\n"
    )
    assert wheel_check.main(["--venv", sys.prefix, "--page", str(page)]) == 1
    shown = capsys.readouterr().out
    assert "page.md: not run    make test (needs a checkout)" in shown
    assert re.search(r"page.md: ok +\d+ s  blockspike --help", shown)
    summary = shown.partition("3 commands ran, 2 failed\n")[2]
    assert "page.md: blockspike status\n    exit code 2\n" in summary
    assert "outputs: expected runs" in summary and "ZeroDivisionError" in summary
    page.write_text("`blockspike --help`\n")
    assert wheel_check.main(["--venv", sys.prefix, "--page", str(page)]) == 0


def test_pip_runs_alone():
    environment, installs = wheel_check.Environment(ROOT), threading.Event()

    def install():
        with environment.use(alone=True):
            installs.set()

    with environment.use(alone=False):
        with environment.use(alone=False):  # commands run concurrently
            waiting = threading.Thread(target=install)
            waiting.start()
        assert not installs.wait(0.2)
    assert installs.wait(5)
    waiting.join()


def test_all_data_files_are_in_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["blockspike"]
    command = ["git", "ls-files", "src/blockspike", "conf"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = [name.removeprefix("src/blockspike/") for name in listed.splitlines()]
    others = [n for n in names if not n.endswith(".py") and n != "conf" and n != "src/blockspike"]
    assert sum(name.startswith("data/samples/") for name in others) == 5
    for name in others:
        in_package = any(
            fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns
        )
        assert in_package or (name.startswith("neurons/") and name.endswith("README.md")), name


def test_blockspike_itself_names_no_commands_of_make():
    files = [p for p in (ROOT / "src").rglob("*") if p.suffix in (".py", ".j2", ".js")]
    files += (ROOT / "conf").rglob("*.yaml")
    assert len(files) > 150
    for path in files:
        assert not _MAKE.search(path.read_text()), path
