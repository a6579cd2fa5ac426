"""Check a built site: no dead link or anchor, and nothing loaded from elsewhere.

    python tools/check_site.py outputs/site

Exit code 1 after a list of what is wrong.
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """The anchors of a page, its links, and the files that a browser loads with it."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors = {"", "__top"}
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        address = values.get(_LOADED.get(tag, ""), "")
        if address and values.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.add(address)


def faults(site: Path) -> Iterator[str]:
    """A line for each dead link, dead anchor, and file loaded from another server."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        for address in sorted(page.loaded):
            parts = urlsplit(address)
            if parts.netloc:
                yield f"{name}: loads {address}"
        if name.name == "404.html":  # its links are from the server's root
            continue
        for address in sorted(page.links | page.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name}: no file {address}"
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{name}: no anchor {address}"


def main(arguments: list[str]) -> int:
    """Print what is wrong with a site; return the exit code."""
    site = Path(arguments[0]).resolve()
    found = list(faults(site))
    print("\n".join(found) or f"{site}: {len(list(site.rglob('*.html')))} pages, no dead link")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
