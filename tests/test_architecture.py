"""Rules of the layout: one order of imports, `instantiate` in one place, docstrings."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import blockspike

SOURCE = Path(blockspike.__file__).parent
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}

# Package → packages of blockspike that it may import, from the lowest to the highest.
MAY_IMPORT = {
    "files": set(),
    "memory": set(),
    "neurons": {"memory"},
    "networks": {"neurons"},
    "data": {"neurons.events", "neurons.cpu.kernels", "files"},
    "training": {"networks", "neurons", "data", "files"},
    "fitting": {"training.guard", "networks", "neurons", "data", "files", "memory"},
    "runs": {"files"},
    "plots": {"files"},
    "figures": {"plots", "files"},
    "report": {"figures", "neurons"},
    "benchmark": {"fitting", "networks", "neurons", "data", "runs"},
    "app": {
        "plots", "report", "figures", "benchmark", "runs", "training", "fitting", "networks",
        "neurons", "data", "files",
    },
}  # fmt: skip
_SCIENCE_FREE = {"pytorch_lightning", "lightning", "hydra", "omegaconf", "h5py", "wandb", "pandas"}
# Package → libraries that it may not import.
WITHOUT = {
    "neurons": _SCIENCE_FREE,
    "networks": _SCIENCE_FREE,
    "fitting": {"hydra", "omegaconf", "wandb"},
    "training": {"hydra", "omegaconf"},
    "data": {"hydra", "omegaconf", "wandb"},
    "plots": {"torch", "hydra", "omegaconf", "wandb"},
    "figures": {"torch", "hydra", "omegaconf", "wandb"},
}


def within(name: str, packages: set[str]) -> bool:
    """Return whether a dotted name is one of `packages` or inside one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def modules_of(package: str) -> Iterator[tuple[str, ast.Module]]:
    """Syntax trees of the package's modules; empty if it does not exist."""
    for name, path in MODULES.items():
        if within(name, {package}):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports_of(tree: ast.AST, module: str, is_package: bool = False) -> set[str]:
    """Absolute dotted names that a module imports, including inside functions."""
    parts = f"blockspike.{module}".split(".")
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                up = node.level - 1 if is_package else node.level
                base = parts[: len(parts) - up] + base
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def imports(package: str) -> Iterator[tuple[str, str]]:
    """(module, imported name) of every import in the package."""
    for module, tree in modules_of(package):
        is_package = MODULES[module].name == "__init__.py"
        for name in sorted(imports_of(tree, module, is_package)):
            yield module, name


def calls_instantiate(tree: ast.AST) -> bool:
    """Return whether Hydra's `instantiate` is imported or called, under any name."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if within(module, {"hydra"}):
                if {alias.name for alias in node.names} & {"instantiate", "call"}:
                    return True
            case ast.Attribute(attr="instantiate"):
                return True
    return False


def public_without_docstring(tree: ast.Module) -> list[str]:
    """Public functions and classes at module level that lack a docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        node.name
        for node in tree.body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]


def test_every_package_is_in_the_table():
    rooms = {name.partition(".")[0] for name in MODULES} - {"__init__", "__main__"}
    assert rooms == MAY_IMPORT.keys()
    assert len(list(imports("neurons"))) > 20


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_follow_the_table(room):
    allowed = {f"blockspike.{name}" for name in {room, *MAY_IMPORT[room]}}
    wrong = [
        f"{module} imports {name}"
        for module, name in imports(room)
        if within(name, {"blockspike"}) and not within(name, allowed)
    ]
    assert not wrong


@pytest.mark.parametrize("room", WITHOUT)
def test_packages_do_without_forbidden_libraries(room):
    wrong = [f"{m} imports {name}" for m, name in imports(room) if within(name, WITHOUT[room])]
    assert not wrong


def test_only_one_module_instantiates():
    wrong = [
        name
        for name, path in MODULES.items()
        if name != "app.build" and calls_instantiate(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not wrong


def test_training_loads_no_rarely_used_library():
    """Such imports are slow, and tqdm.auto warns in a notebook."""
    rare = {"wandb", "tqdm.auto", "allensdk", "pynwb", "pyabf", "igor2", "tonic", "optuna"}
    code = f"import sys, blockspike.app.train; print({rare} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_commands_that_train_nothing_load_no_pytorch():
    """It would take them ten times as long."""
    code = (
        "import sys; from importlib import import_module; import blockspike.app.cli\n"
        "for name in ('status', 'collect'):\n"
        "    import_module(f'blockspike.app.{name}')\n"
        "print({'torch', 'lightning_fabric', 'numba'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module):
    assert not public_without_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


def test_the_checks_find_violations():
    tree = ast.parse(
        "import h5py\n"
        "from ..data import shd\n"
        "def f():\n"
        "    from blockspike.app.build import Schema\n"
        "class C:\n"
        "    pass\n"
        "def _g(): pass\n"
    )
    names = imports_of(tree, "neurons.readout")
    assert names == {"h5py", "blockspike.data.shd", "blockspike.app.build.Schema"}
    assert imports_of(ast.parse("from . import a"), "neurons", True) == {"blockspike.neurons.a"}
    assert within("h5py", WITHOUT["neurons"])
    assert not within("blockspike.data.events2", {"blockspike.neurons.events"})
    assert public_without_docstring(tree) == ["f", "C"]
    assert calls_instantiate(ast.parse("import hydra\nhydra.utils.instantiate(x)"))
    assert calls_instantiate(ast.parse("from hydra.utils import instantiate as make"))
    assert not calls_instantiate(ast.parse("x = make_instantiate()"))
