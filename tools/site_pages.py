"""Pages of the site that are made from the source: a hook of MkDocs, see mkdocs.yml.

Tutorials are the notebooks with the outputs they are committed with. The reference has an entry for
every public name, every command and every option of the configuration, so none can be forgotten.
Pages at the root of the repository become pages of the site.
"""

import ast
import base64
import dataclasses
import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STUB = ROOT / "src" / "blockspike" / "__init__.pyi"
CONF = ROOT / "conf"
OF_ROOT = {
    "security": "SECURITY.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}
PACKAGES = {
    "neurons": "Spikes, membranes and thresholds from currents: functions on tensors.",
    "networks": "Layers, classifiers, and their exchange with other simulators.",
    "data": "Recordings of events and of cells, read and batched.",
    "fitting": "Neurons fitted to recordings, and how alike spike trains are.",
    "training": "Lightning modules.",
    "app": "Configurations in Python, finished runs, and trained networks.",
    "memory": "What a program that imports blockspike may want to set.",
}
GROUPS = {
    "model": "The neurons of a network, and how they are simulated.",
    "population": "The neurons that are fitted to recordings.",
    "data": "The recordings, and how they are cut and binned.",
    "network": "The classifier around the hidden layers.",
    "fit": "How neurons are fitted.",
    "optimizer": "The optimiser.",
    "scheduler": "The learning rate over the epochs.",
    "trainer": "Lightning's trainer: the device, precision and number of epochs.",
    "logger": "Where metrics go.",
    "callbacks": "Lightning's callbacks, beside those that every run has.",
    "experiment": "Complete recipes; each sets several of the groups above.",
    "sweep": "Where the runs of a sweep go.",
    "search": "Searches for hyperparameters: their space and trials.",
    "debug": "Short runs that look for faults.",
}
_PLACES = {ROOT / source: f"development/{name}.md" for name, source in OF_ROOT.items()} | {
    path: f"tutorials/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")
}
_ALONE = ("index.md", "install.md", "paper.md")  # pages whose section has no other
_LONGEST_OUTPUT = 40  # lines of a notebook's cell


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of docs/."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]: extra docs

    for uri, text in generated().items():
        if before := files.get_file_from_path(uri):
            files.remove(before)
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links lead to pages of the site; hide a navigation of one page; rank diaries last."""
    uri = page.file.src_uri
    if uri in _ALONE:
        page.meta["hide"] = ["navigation"]
    if uri.startswith(("notes/", "development/changelog")):
        page.meta["search"] = {"boost": 0.2}
    source = ROOT / "docs" / uri
    return with_site_links(markdown, source, uri) if source.is_file() else markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Link sections of the paper's page that docstrings name."""
    if not page.file.src_uri.startswith("reference/"):
        return html
    paper = (ROOT / "docs" / "paper.md").read_text()
    for section in re.findall(r"^## (.+)$", paper, re.MULTILINE):
        anchor = section.lower().replace(" ", "-")
        named = r"docs/paper\.md,\s+" + section.replace(" ", r"\s+")
        link = f'<a href="../paper.html#{anchor}">the paper, {section}</a>'
        html = re.sub(named, link, html)
    return html


def generated() -> dict[str, str | bytes]:
    """Every generated page and picture, by its place below docs/."""
    pages: dict[str, str | bytes] = {}
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        pages |= tutorial(notebook)
    for name, source in OF_ROOT.items():
        uri = f"development/{name}.md"
        pages[uri] = with_site_links((ROOT / source).read_text(), ROOT / source, uri)
    for package, names in public_names().items():
        pages[f"reference/{package}.md"] = reference(package, names)
    index = ROOT / "docs" / "reference" / "index.md"
    pages["reference/index.md"] = f"{index.read_text()}\n{list_of_names()}"
    pages["reference/commands.md"] = commands_page()
    pages["reference/configuration.md"] = configuration_page()
    return pages


def with_site_links(text: str, source: Path, uri: str) -> str:
    """A file's text with links that lead to pages of the site, as its page `uri` has them.

    A link to a notebook or a page of the root leads to its place in the site. A link to a file that
    the site does not have becomes its title. Others, and text that only looks like one, stay.
    """

    def change(link: re.Match) -> str:
        title, target = link.groups()
        path, mark, anchor = target.partition("#")
        file = (source.parent / path).resolve()
        if not path or not file.is_file():
            return link[0]
        place = _PLACES.get(file)
        if place is None and file.is_relative_to(ROOT / "docs"):
            place = file.relative_to(ROOT / "docs").as_posix()
        if place is None:
            return title
        return f"[{title}]({os.path.relpath(place, Path(uri).parent)}{mark}{anchor})"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", change, text)


# Tutorials


def tutorial(path: Path) -> dict[str, str | bytes]:
    """A notebook as a page with its pictures."""
    parts, files = [], {}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(with_site_links(source, path, f"tutorials/{path.stem}.md"))
            continue
        parts.append(f"```python\n{source}\n```")
        text, pictures = "", []
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                pictures.append(f"{path.stem}_{number}_{len(pictures)}.png")
                files[f"tutorials/{pictures[-1]}"] = base64.b64decode(data["image/png"])
            else:
                text += "".join(output.get("text", []) or data.get("text/plain", []))
        parts += [f"![Output of the cell above]({name})" for name in pictures]
        if text.strip():
            lines = text.strip("\n").splitlines()[:_LONGEST_OUTPUT]
            parts.append("``` { .text .output }\n" + "\n".join(lines) + "\n```")
    return {f"tutorials/{path.stem}.md": "\n\n".join(parts) + "\n", **files}


# The reference


def public_names() -> dict[str, list[str]]:
    """The names of `blockspike`, by the package they are defined in, sorted within it."""
    names: dict[str, list[str]] = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            package = (node.module or "").split(".")[0]
            names.setdefault(package, []).extend(alias.name for alias in node.names)
    return {package: sorted(names[package], key=str.lower) for package in sorted(names)}


def reference(package: str, names: list[str]) -> str:
    """The page with an entry for each of the names."""
    entries = "\n\n".join(f"::: blockspike.{name}" for name in names)
    return f"# {title_of(package)}\n\n{PACKAGES[package]}\n\n{entries}\n"


def title_of(package: str) -> str:
    """A package's name as a heading."""
    return "Runs and trained networks" if package == "app" else package.capitalize()


def list_of_names() -> str:
    """Every public name with a link, then where the rest of the reference is."""
    lines = ["| | public names |", "|---|---|"]
    for package, names in public_names().items():
        links = ", ".join(f"[`{n}`]({package}.md#blockspike.{n})" for n in names)
        lines.append(f"| [{title_of(package)}]({package}.md) | {links} |")
    return "\n".join(lines) + (
        "\n\n[Commands](commands.md) describes what the command line does, "
        "[configuration](configuration.md) every value that it takes.\n"
    )


def commands_page() -> str:
    """Every command: Typer's page, with the configuration and the help of those of Hydra."""
    from blockspike.app.cli import HYDRA_COMMANDS

    typer = ("typer", "blockspike.app.cli", "utils", "docs", "--name", "blockspike")
    with ThreadPoolExecutor(2) as pool:
        whole, *helps = pool.map(
            printed, [typer, *(("blockspike", name, "--help") for name in HYDRA_COMMANDS)]
        )
    page = html.unescape(whole).replace("# `blockspike`", "# Commands", 1)
    for name, shown in zip(HYDRA_COMMANDS, helps, strict=True):
        comment, body = head_and_body((CONF / f"{name}.yaml").read_text())
        lines = "\n".join(f"    {line}".rstrip() for line in shown.splitlines())
        title = f"\n## `blockspike {name}`\n"
        before, _, after = page.partition(title)
        after = after[after.index("\n## ") :]
        page = (
            f"{before}{title}\n{comment}\n\n```yaml\n{own_values(body)}\n```\n\n"
            f'??? note "blockspike {name} --help"\n\n    ```text\n{lines}\n    ```\n{after}'
        )
    return page


def printed(words: tuple[str, ...]) -> str:
    """What `python -m WORDS` prints."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / "docs")
    return done.stdout.strip()


def configuration_page() -> str:
    """Every group, its options with their comments and values, and the types of its keys."""
    types = schemas()
    parts = [
        "# Configuration\n\nA run's configuration is composed of groups: `group=option` chooses "
        "one, `group.key=value` changes a value, and `blockspike COMMAND --cfg job` prints the "
        "result. An error names the key that is wrong. The files are in `conf/`.\n"
    ]
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    if groups - set(GROUPS):
        raise KeyError(f"GROUPS: expected a line for {', '.join(sorted(groups - set(GROUPS)))}")
    for group, about in GROUPS.items():
        if group not in groups:
            continue
        parts.append(f"## {group}\n\n{about}\n")
        for path in sorted((CONF / group).glob("*.yaml")):
            comment, body = head_and_body(path.read_text())
            parts.append(f"### {group}={path.stem}\n\n{comment}\n\n```yaml\n{body}\n```\n")
        parts += [table_of(title, rows) for title, rows in types.get(group, {}).items()]
    return "\n".join(parts)


def head_and_body(text: str) -> tuple[str, str]:
    """A configuration's first comments as Markdown, commands as code, and the rest of the file."""
    lines = text.strip().splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comments = [line.removeprefix("#").strip() for line in lines[:n]]
    shown = []
    for line in comments:
        if line.startswith("@package"):
            continue
        command, mark, about = line.partition(" # ")
        is_command = line.startswith(("blockspike ", "make "))
        shown.append(f"`{command}`" + (f" {about}" if mark else "") + "  " if is_command else line)
    return "\n".join(shown).strip(), "\n".join(lines[n:]).strip()


def own_values(body: str) -> str:
    """A command's configuration less Hydra's own part."""
    return re.sub(r"^hydra:\n(?:(?: .*)?\n?)*", "", body, flags=re.MULTILINE).strip()


def schemas() -> dict[str, dict[str, list[tuple[str, str, str]]]]:
    """By group and class: name, type and default of each key."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from blockspike.app.schemas import register_schemas

    register_schemas()
    found: dict[str, dict[str, list[tuple[str, str, str]]]] = {}
    nodes = ConfigStore.instance().repo["schema"]
    for path in sorted(CONF.glob("*/*.yaml")):
        for name in re.findall(r"/schema/(\w+)", path.read_text()):
            kind = OmegaConf.get_type(nodes[f"{name}.yaml"].node)
            if kind is not None:
                found.setdefault(path.parent.name, {})[kind.__name__] = list(rows_of(kind))
    return found


def rows_of(kind: Any) -> Iterator[tuple[str, str, str]]:
    """Name, type and default of each field but Hydra's own."""
    for field in dataclasses.fields(kind):
        if not field.name.startswith("_"):
            required = field.default in (dataclasses.MISSING, "???")
            default = "required" if required else f"`{plain(field.default)}`"
            yield f"`{field.name}`", f"`{type_name(field.type)}`", default


def plain(value: Any) -> str:
    """A default as it is written in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def type_name(kind: Any) -> str:
    """A type as it is written in Python."""
    return getattr(kind, "__name__", str(kind)) if "[" not in str(kind) else str(kind)


def table_of(title: str, rows: list[tuple[str, str, str]]) -> str:
    """The keys of a class as a table."""
    lines = [f"Keys of `{title}`:\n", "| key | type | default |", "|---|---|---|"]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in escaped)]) + "\n"
