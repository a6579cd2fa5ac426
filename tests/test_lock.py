"""`requirements.lock` satisfies pyproject.toml on every supported Python."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = [Requirement(line) for line in re.findall(r"^([a-z0-9].*?) ?\\?$", LOCK, re.MULTILINE)]
EXTRAS = ("dev", "docs", "data", "sweep", "nir")


def pinned(python: str) -> dict[str, Version]:
    system = {"python_full_version": f"{python}.0", "python_version": python}
    system |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    return {
        pin.name: Version(str(pin.specifier).removeprefix("=="))
        for pin in PINS
        if pin.marker is None or pin.marker.evaluate(system)
    }


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_dependency_is_pinned_within_its_range(python):
    versions = pinned(python)
    optional = PROJECT["optional-dependencies"]
    for text in PROJECT["dependencies"] + [t for extra in EXTRAS for t in optional[extra]]:
        needed = Requirement(text)
        assert versions[needed.name.lower()] in needed.specifier, f"{needed}: run `make lock`"


def test_every_pin_has_a_hash_and_no_address():
    assert len(PINS) > 100 and all(str(pin.specifier).startswith("==") for pin in PINS)
    hashed = re.findall(r"^[a-z0-9].* \\\n    --hash=sha256:[0-9a-f]{64}", LOCK, re.MULTILINE)
    assert len(hashed) == len(PINS)
    assert "://" not in LOCK
