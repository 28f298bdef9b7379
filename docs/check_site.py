"""Checks a built site: ``python docs/check_site.py SITE``.

Each link and anchor leads somewhere, each picture is there and has a text in its place, nothing is fetched
from another machine, and each page is found by the search.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
WITHOUT_LOADING = ("canonical", "next", "prev", "search", "index")  # rel of a <link> that fetches nothing
IN_STYLES = re.compile(r"url\(\s*['\"]?(?!data:)([^'\")]+)|@import\s+['\"]([^'\"]+)")


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {""}
        self.pictures_without_text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        fetches = values.get("rel") not in WITHOUT_LOADING
        if tag in LOADED and LOADED[tag] in values and fetches:
            self.loads.append(values[LOADED[tag]])
        if tag == "img" and not values.get("alt"):
            self.pictures_without_text.append(values.get("src", ""))


def is_remote(target: str) -> bool:
    parts = urlsplit(target)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def faults(site: Path) -> list[str]:
    """What is wrong with a site, a line each.

    Args:
        site: the folder that Sphinx wrote.

    Returns:
        Lines that begin with the file's path inside the site; none if all is well.
    """
    pages = {path.resolve(): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site} holds no page: build the site first"]
    found = []
    for path, page in pages.items():
        found += [f"{path.relative_to(site.resolve())}: {text}" for text in _of_page(path, page, pages)]
    for path in sorted(site.rglob("*.css")):
        for match in IN_STYLES.finditer(path.read_text()):
            target = match[1] or match[2]
            where = path.relative_to(site)
            if is_remote(target):
                found.append(f"{where}: loads {target} from another machine")
            elif not (path.parent / unquote(urlsplit(target).path)).exists():
                found.append(f"{where}: {target} is not there")
    return found + _not_searchable(site, pages)


def _of_page(path: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    found = [f"the picture {src} has no alt text" for src in page.pictures_without_text]
    found += [f"loads {target} from another machine" for target in page.loads if is_remote(target)]
    for target in page.links + page.loads:
        parts = urlsplit(target)
        if is_remote(target) or parts.scheme:  # another site, mailto:, data:
            continue
        there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not there.exists():
            found.append(f"{target} is not there")
        elif there in pages and unquote(parts.fragment) not in pages[there].anchors:
            found.append(f"{target} names a place that its page does not have")
    return found


def _not_searchable(site: Path, pages: dict[Path, Page]) -> list[str]:
    """The documents that the index of the search leaves out."""
    index = site / "searchindex.js"
    if not index.exists():
        return ["searchindex.js is not there: the search finds nothing"]
    text = index.read_text()
    sources = site / "_sources"
    documents = [p.relative_to(sources).with_suffix("").with_suffix("") for p in sources.rglob("*.txt")]
    return [f"{d}: the search does not know it" for d in documents if f'"{d.as_posix()}"' not in text]


def main() -> int:
    found = faults(Path(sys.argv[1]))
    print("\n".join(found) or "every link, picture and page of the site is in order")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
