"""What mkdocs does beyond Markdown: files from outside docs/, pictures, figures, links checked.

- A link that leaves docs/ leads to a page (`PAGES`) or to a copy of the file in the site, so
  that the same Markdown works in the repository.
- A notebook of docs/ becomes a page of the same name.
- `![text](images/x.svg)` alone on a line becomes the picture itself, which then follows the
  colors of the page.
- `<!-- figure: name -->` becomes a table or chart of `figures.FIGURES`, drawn from
  benchmarks/results.
- Every link of the finished site, those in docstrings and raw HTML included, must have a target,
  and no page may fetch anything from elsewhere.
"""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # mkdocs runs this file by its path

from figures import FIGURES  # noqa: E402
from notebook import page_of  # noqa: E402

log = logging.getLogger("mkdocs.hooks.site")

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results/paper/quality.md": "quality.md",
}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)((?:#[^)\s]*)?)(?=\))")
PICTURE = re.compile(r"^!\[(.+)\]\((\S+\.svg)\)$", re.MULTILINE)
FIGURE = re.compile(r"^<!-- figure: (\S+) -->$", re.MULTILINE)
NEEDS = re.compile(r"^(\s*```\w+) needs=.*$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/, and those of notebooks."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for notebook in (ROOT / "docs").glob("*.ipynb"):
        markdown, pictures = page_of(notebook)
        files.append(File.generated(config, f"{notebook.stem}.md", content=markdown))
        for name, content in pictures.items():
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links, pictures and figures of one page; what a code block needs is for the tests."""
    name = page.file.src_uri
    sources = {page: source for source, page in PAGES.items()}
    source = sources.get(name, f"docs/{name}")
    folder, here = posixpath.dirname(source), posixpath.dirname(name) or "."

    def target(match: re.Match[str]) -> str:
        path, anchor = match.groups()
        wanted = posixpath.normpath(posixpath.join(folder, path))
        no_page = wanted.endswith(".md") and wanted not in PAGES and not wanted.startswith("docs/")
        if urlsplit(path).scheme or no_page or not (ROOT / wanted).is_file():
            return match.group()  # mkdocs says what is wrong with it
        if wanted.startswith("docs/"):
            inside = re.sub(r"\.ipynb$", ".md", wanted.removeprefix("docs/"))
        elif wanted in PAGES:
            inside = PAGES[wanted]
        else:
            inside = f"files/{wanted}"
            if files.get_file_from_path(inside) is None:
                files.append(File.generated(config, inside, abs_src_path=str(ROOT / wanted)))
        return posixpath.relpath(inside, here) + anchor

    markdown = PICTURE.sub(lambda found: picture(found[1], ROOT / folder / found[2]), markdown)
    markdown = FIGURE.sub(lambda found: FIGURES[found[1]](), markdown)
    return NEEDS.sub(r"\1", LINK.sub(target, markdown))


def picture(caption: str, path: Path) -> str:
    """Return the SVG file `path` as a figure in the page."""
    drawing = "\n".join(line for line in path.read_text().splitlines() if line.strip())
    text = f"<figcaption>{caption}</figcaption>"
    return f'<figure class="picture">\n{drawing}\n{text}\n</figure>'


class Links(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        named = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := named.get(key))}
        if tag == "a" and (found := named.get("href")):
            self.targets.append(found)
        elif found := named.get("src") or named.get("href"):
            self.fetched.append(found)


def on_post_build(config: MkDocsConfig) -> None:
    """Warns, and so fails a strict build, of links without a target."""
    site = Path(config.site_dir).resolve()
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html")}
    for path, links in pages.items():
        if path.name == "404.html":  # its links are absolute: it is shown at any address
            continue
        where = path.relative_to(site)
        for link in [*links.targets, *links.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in links.fetched:
                    log.warning("%s: fetches %s", where, link)
                continue
            wanted = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[wanted].anchors if wanted in pages else None
            if not wanted.is_file():
                log.warning("%s: there is no %s", where, link)
            elif parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors:
                log.warning("%s: %s has no such anchor", where, link)
