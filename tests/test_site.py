"""The site's pages are complete, their links lead somewhere, and examples in docstrings run.

`make docs` builds the site itself, strictly.
"""

import doctest
import inspect
import re
import unicodedata
from pathlib import Path

import pytest

import blockspike as bs
import check_site
import site_pages
from blockspike.app.cli import app
from printed_commands import ROOT

NAMES = sorted(name for name in dir(bs) if not name.startswith("_"))


@pytest.fixture(scope="module")
def generated() -> dict[str, str | bytes]:
    return site_pages.generated()


@pytest.fixture(scope="module")
def texts(generated) -> dict[Path, str]:
    """The text of each page, by its place below the root of the repository."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    pages = {path.relative_to(ROOT): path.read_text() for path in files}
    return pages | {Path("docs", k): v for k, v in generated.items() if isinstance(v, str)}


def slug(heading: str) -> str:
    """The anchor of a heading, as the site and repository hosts make it."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(text: str) -> set[str]:
    outside_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", outside_code, re.MULTILINE)
    return {slug(h) for h in headings} | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def test_every_link_and_anchor_leads_somewhere(texts, generated):
    places = {Path("docs", uri) for uri in generated}
    n_links = 0
    for page, text in texts.items():
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
            file, _, anchor = link.partition("#")
            target = Path(page, "..", file) if file else page
            target = (ROOT / target).resolve().relative_to(ROOT.resolve())
            assert (ROOT / target).exists() or target in places, f"{page}: {link}"
            if anchor:
                assert anchor in anchors(texts[target]), f"{page}: {link}"
            n_links += 1
    assert n_links > 100


def test_pages_and_sections_that_the_source_names_exist(texts):
    named = []
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]:
        plain = re.sub(r"\s+#?\s*", " ", path.read_text())
        named += re.findall(r"(docs/[\w/]+\.md)(?:, ([A-Z]\w+(?: [a-z]+)?))?", plain)
    assert len(named) > 20
    for page, section in named:
        assert Path(page) in texts, page
        assert not section or slug(section) in anchors(texts[Path(page)]), f"{page}, {section}"


def test_links_lead_to_pages_of_the_site():
    links = "[a](../SECURITY.md#safe) [b](../notebooks/fit.ipynb) [c](paper.md) [d](../LICENSE) "
    found = site_pages.with_site_links(f"{links} e[f](g)", ROOT / "docs" / "index.md", "howto/x.md")
    assert found == (
        "[a](../development/security.md#safe) [b](../tutorials/fit.md) [c](../paper.md) d  e[f](g)"
    )


def test_a_dead_link_anchor_and_foreign_script_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">a</h1><a href="b.html">b</a><a href="#no">no</a><a href="#top">top</a>'
        '<script src="https://example.org/x.js"></script>'
    )
    assert list(check_site.faults(tmp_path)) == [
        "a.html: loads https://example.org/x.js", "a.html: no anchor #no", "a.html: no file b.html",
    ]  # fmt: skip


def test_every_public_name_command_and_option_has_an_entry(generated):
    reference = "\n".join(text for uri, text in generated.items() if uri.startswith("reference/"))
    for name in NAMES:
        assert f"\n::: blockspike.{name}\n" in reference, name
    callbacks = [command.callback for command in app.registered_commands]
    commands = [callback.__name__ for callback in callbacks if callback is not None]
    for command in [*commands, "plot"]:
        assert f"\n## `blockspike {command}`\n" in reference, command
    for path in (ROOT / "conf").glob("*/*.yaml"):
        assert f"\n### {path.parent.name}={path.stem}\n" in reference, path


def test_every_tutorial_shows_the_outputs_of_its_notebook(generated):
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = generated[f"tutorials/{notebook.stem}.md"]
        assert "{ .text .output }" in page or "![Output" in page, f"{notebook.name}: no outputs"


@pytest.mark.parametrize("name", NAMES)
def test_the_entry_of_a_public_name_is_complete(name, tmp_path, monkeypatch):
    """A summary that ends, and an example that runs as printed."""
    monkeypatch.chdir(tmp_path)
    public = getattr(bs, name)
    text = inspect.getdoc(public) or ""
    assert text.splitlines()[0].endswith("."), f"{name}: {text.splitlines()[:1]}"
    examples = doctest.DocTestParser().get_doctest(text, {"bs": bs}, name, None, None)
    assert examples.examples, f"{name}: expected an example in its docstring"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(examples, out=report.append).failed == 0, "".join(report)
