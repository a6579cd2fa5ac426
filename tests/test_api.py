"""`import blockspike as bs`: it is quick, and every public name exists and is documented."""

import inspect
import subprocess
import sys

import pytest

import blockspike as bs

MOST_S = 0.15  # longest import time


def test_importing_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.process_time(); import blockspike as bs;"
        "seconds = time.process_time() - start;"
        "print(seconds, {'torch', 'numba', 'numpy', 'hydra', 'wandb'} & sys.modules.keys())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, loaded = zip(*(run.stdout.split(maxsplit=1) for run in runs), strict=True)
    assert set(loaded) == {"set()\n"}
    assert min(map(float, seconds)) < MOST_S


@pytest.mark.parametrize("name", dir(bs))
def test_public_names_are_documented(name):
    value = getattr(bs, name)
    assert value.__name__ == name and len(inspect.getdoc(value) or "") > 40


def test_an_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = bs.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_the_version_is_that_of_the_package():
    assert bs.__version__.count(".") == 2


def test_the_core_needs_neither_lightning_nor_hydra():
    code = (
        "import sys, blockspike as bs; bs.alif, bs.simulate, bs.SpikingClassifier, bs.EventBatch;"
        "heavy = {'pytorch_lightning', 'hydra', 'omegaconf', 'wandb', 'pandas', 'matplotlib',"
        " 'h5py', 'jinja2', 'rich', 'requests'}; print(heavy & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
