"""README and docs/ as tests read them: pages with their links, words in backticks, and blocks of commands.

Nothing here judges a page: tests/page_checks.py does, and tests/e2e/test_docs.py runs the commands.
"""

from __future__ import annotations

import dataclasses
import html.parser
import pathlib
import re
import shlex
import unicodedata
from collections.abc import Iterator
from typing import Optional

import markdown_it
import markdown_it.token

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOOSE = ("README.md", "SECURITY.md", "AGENTS.md", "CONTRIBUTING.md")  # pages outside of docs/
_HERE = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
OPERATORS = frozenset(["&&", "||", ";", "|", "&", "(", ")"])


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a block, as bash is given it: a line, or several that belong together.

    Attributes:
        line: Of the page, where it begins.
        text: As it stands there.
    """

    line: int
    text: str

    def parts(self) -> list[list[str]]:
        """Split it at its operators into simple commands of words; what is redirected where is left out.

        Raises:
            ValueError: A quotation has no end.
        """
        text = self.text.partition("\n")[0] if _HERE.search(self.text) else self.text.replace("\\\n", " ")
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found: list[list[str]] = [[]]
        redirected = False
        for word in lexer:
            if word in OPERATORS:
                found.append([])
            elif word.strip("<>&|") == "":
                redirected = True
                if found[-1][-1:] in (["1"], ["2"]):
                    found[-1].pop()
            elif redirected:
                redirected = False
            else:
                found[-1].append(word)
        return [words for words in found if words]


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: Of the page, where the fence stands.
        language: What stands behind the fence.
        text: Between the fences.
        marker: What the HTML comment directly above says; empty where there is none.
    """

    line: int
    language: str
    text: str
    marker: str

    @property
    def runs(self) -> Optional[int]:
        """With which exit code each of its commands ends here; None where it is not run."""
        match = re.fullmatch(r"run(?:: rc=(\d+))?", self.marker)
        return int(match[1] or 0) if match else None

    def commands(self) -> Iterator[Command]:
        """Take it apart: a command ends with its line, unless a backslash, a quotation or a here-document goes on."""
        pending: list[str] = []
        for number, line in enumerate(self.text.splitlines(), self.line + 1):
            if not pending and (not line.strip() or line.lstrip().startswith("#")):
                continue
            pending.append(line)
            if not _goes_on(pending):
                yield Command(number - len(pending) + 1, "\n".join(pending))
                pending = []
        if pending:
            yield Command(number - len(pending) + 1, "\n".join(pending))


def _goes_on(lines: list[str]) -> bool:
    if re.search(r"(?<!\\)(\\\\)*\\$", lines[-1]):
        return True
    if here := _HERE.search(lines[0]):
        return lines[-1].strip() != here[2]
    try:
        shlex.split("\n".join(lines), comments=True)
    except ValueError:
        return True
    return False


@dataclasses.dataclass
class Page:
    """A page in Markdown.

    Attributes:
        path: From the checkout, with slashes.
        text: All of it.
        blocks: Fenced ones, in order.
        codes: Line and text of each word in backticks.
        links: Line and target of each link and picture.
        headings: Line and text of each heading.
        ids: Of HTML elements that have one.
        indented: Lines where a block begins that is code only because it is indented.
    """

    path: str
    text: str
    blocks: list[Block] = dataclasses.field(default_factory=list)
    codes: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    links: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    headings: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    ids: set[str] = dataclasses.field(default_factory=set)
    indented: list[int] = dataclasses.field(default_factory=list)

    @property
    def folder(self) -> str:
        """The folder in which it lies, from the checkout; empty for the checkout itself."""
        return self.path.rpartition("/")[0]

    def anchors_on_github(self) -> set[str]:
        """List what a link to a part of it may name where GitHub shows it."""
        return self.ids | _numbered([_slug_of_github(text) for _, text in self.headings], "-")

    def anchors_on_the_site(self) -> set[str]:
        """List the same for the pages that MkDocs makes."""
        return self.ids | _numbered([_slug_of_mkdocs(text) for _, text in self.headings], "_")


def _slug_of_github(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _slug_of_mkdocs(heading: str) -> str:
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def _numbered(slugs: list[str], mark: str) -> set[str]:
    """Tell those apart that are alike, as renderers do: the second one ends with a 1."""
    return {slug + (f"{mark}{before}" if (before := slugs[:place].count(slug)) else "")
            for place, slug in enumerate(slugs)}  # fmt: skip


class _Html(html.parser.HTMLParser):
    """Reads ids and targets from pieces of HTML."""

    def __init__(self, piece: str):
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.feed(piece)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.ids += [given[name] for name in ("id", "name") if name in given]
        self.targets += [given[name] for name in ("href", "src") if name in given]


def parse(path: str, text: str) -> Page:
    """Read a page.

    Args:
        path: From the checkout.
        text: What it says.
    """
    page = Page(path, text)
    comment, comment_ends = "", -1
    heading = False
    for token in markdown_it.MarkdownIt("commonmark").enable("table").parse(text):
        line = token.map[0] if token.map else 0
        if token.type == "html_block":
            if match := re.fullmatch(r"\s*<!--\s*(.*?)\s*-->\s*", token.content, re.DOTALL):
                comment, comment_ends = match[1], line + len(token.content.rstrip().splitlines())
            _add_html(page, line + 1, token.content)
        elif token.type == "fence":
            marker = comment if comment_ends == line else ""
            page.blocks.append(Block(line + 1, token.info.strip(), token.content, marker))
        elif token.type == "code_block":
            page.indented.append(line + 1)
        elif token.type == "heading_open":
            heading = True
        elif token.type == "inline":
            _add_inline(page, line + 1, token.children or [])
            if heading:
                page.headings.append((line + 1, _shown(token.children or [])))
            heading = False
    return page


def _add_inline(page: Page, line: int, children: list[markdown_it.token.Token]) -> None:
    for child in children:
        if child.type in ("softbreak", "hardbreak"):
            line += 1
        elif child.type == "code_inline":
            page.codes.append((line, child.content))
        elif child.type == "link_open":
            page.links.append((line, str(child.attrs["href"])))
        elif child.type == "image":
            page.links.append((line, str(child.attrs["src"])))
        elif child.type == "html_inline":
            _add_html(page, line, child.content)


def _add_html(page: Page, line: int, piece: str) -> None:
    read = _Html(piece)
    page.ids |= set(read.ids)
    page.links += [(line, target) for target in read.targets]


def _shown(children: list[markdown_it.token.Token]) -> str:
    return "".join(child.content for child in children if child.type in ("text", "code_inline"))


def read_pages(checkout: pathlib.Path = ROOT) -> list[Page]:
    """Read all pages that are written for people, but for the changelog.

    Args:
        checkout: The project's folder.
    """
    paths = [checkout / name for name in LOOSE] + sorted((checkout / "docs").rglob("*.md"))
    return [
        parse(path.relative_to(checkout).as_posix(), path.read_text(encoding="utf-8"))
        for path in paths
        if path.is_file()
    ]
