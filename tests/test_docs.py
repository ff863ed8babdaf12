"""The documentation names files, functions, tests and links that exist."""

import ast
import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BASES = (ROOT, ROOT / "src" / "openprime")
"""What a path in the documentation may start from."""
MENTION = re.compile(r"([\w.-]+(?:/[\w.-]+)*\.py)(?:::([A-Za-z_][\w.]*))?")
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)


def resolve(path: str) -> Path | None:
    """The file that a document calls `path`."""
    return next((base / path for base in BASES if (base / path).is_file()), None)


@cache
def names(path: Path) -> frozenset[str]:
    """Functions, classes, constants and Class.member of a module, read without importing it."""

    def within(body: list[ast.stmt]) -> set[str]:
        found: set[str] = set()
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{name}" for name in within(node.body)}
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
        return found

    return frozenset(within(ast.parse(path.read_text(encoding="utf-8")).body))


@cache
def anchors(path: Path) -> frozenset[str]:
    """Headings of a page as links write them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)


def without_addresses(text: str) -> str:
    return re.sub(r"https?://[^\s)>]+", "", text)


def missing_code(text: str) -> list[str]:
    """Mentions of code, `folder/file.py` or `folder/file.py::name`, that lead nowhere."""
    wrong = []
    for path, name in MENTION.findall(without_addresses(text)):
        if "/" not in path and not name:
            continue  # a file that is shown or written by the reader
        file = resolve(path)
        if file is None or (name and name not in names(file)):
            wrong.append(f"{path}::{name}" if name else path)
    return wrong


def is_address(link: str) -> bool:
    """Whether a link to elsewhere has the form of one; nobody is asked."""
    parts = urlsplit(link)
    return parts.scheme == "https" and re.fullmatch(r"(?:[\w-]+\.)+[a-z]{2,}", parts.netloc) is not None


def missing_links(document: Path, text: str) -> list[str]:
    """Relative links to files and headings that are not there, and links to elsewhere without the form of one."""
    wrong = []
    for pair in LINK.findall(text):
        link = pair[0] or pair[1]
        if "://" in link:
            wrong += [] if is_address(link) else [link]
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documentation__names_code_that_exists(document: Path):
    wrong = missing_code(document.read_text(encoding="utf-8"))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documentation__links_lead_somewhere(document: Path):
    wrong = missing_links(document, document.read_text(encoding="utf-8"))
    assert not wrong, "\n".join(wrong)


def test_readme__names_every_module_of_the_package_and_no_other():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The files")[1].split("\n## ")[0]
    package = tree.split("configs/ ")[0]
    modules = {path.name for path in (ROOT / "src" / "openprime").rglob("*.py") if path.name[0] != "_"}
    assert set(re.findall(r"\w+\.py", package)) == modules


def test_traps__are_fifteen_with_code_and_test_each():
    page = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert [int(section.split(".")[0]) for section in sections] == list(range(1, 16))
    for number, section in enumerate(sections, 1):
        here, _, test = section.partition("**Here.**")[2].partition("**Test.**")
        assert MENTION.search(here), f"trap {number} names no code"
        assert re.search(rf"::test_\w*trap_{number:02}", test), f"trap {number} names no test of its number"


def test_missing_code__finds_what_is_not_there(tmp_path: Path):
    """Else the tests above would pass on anything."""
    text = "`prime/nothing.py`, `prime/rewards.py::token_rewards`, `prime/rewards.py::nothing`, `mine.py`"
    assert missing_code(text) == ["prime/nothing.py", "prime/rewards.py::nothing"]
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, here\n[a](#a-title-here) [b](#none) [c](gone.md) [d](https://e.org) [e](http:/e.org) [f](https://e,org/)\n"
    )
    assert missing_links(page, page.read_text()) == ["#none", "gone.md", "http:/e.org", "https://e,org/"]
