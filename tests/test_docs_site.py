"""The site: what its build refuses, that it needs no network, and that the reference has every setting."""

import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from markdown_it import MarkdownIt

from openprime import config as schemas
from openprime.cli import COMMANDS
from support.page_html import Page

pytest.importorskip("material")

from markdown import markdown
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG")),
]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The built site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_site__has_every_page_and_loads_nothing_from_elsewhere(site: Path):
    made = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert made >= {f"{path.stem.lower()}.html" for path in PAGES}
    assert made >= {f"configuration/{name}.html" for name in COMMANDS}
    for path in site.rglob("*.html"):
        for tag, attributes in Page(path.read_text(encoding="utf-8")).tags:
            loaded = attributes.get("src") or (attributes.get("href") if tag == "link" else None) or ""
            assert not re.match(r"(https?:)?//", loaded), f"{path.name}: {loaded}"
    for path in (site / "assets" / "stylesheets").glob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text(encoding="utf-8")), path.name
    assert not list(site.rglob("*.py"))


@pytest.mark.parametrize(
    "link", ["[a](gone.md)", "[a](other.md#gone)", "[a](#gone)", "[a](../README.md)", "![a](gone.png)"]
)
def test_site__links_that_lead_nowhere_end_the_build(link: str, tmp_path: Path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# Title\n\n{link}\n")
    (docs / "other.md").write_text("# Other\n\n[a](index.md#title)\n")
    ours = {
        "docs_dir": str(docs),
        "site_dir": str(tmp_path / "site"),
        "hooks": [],
        "nav": ["index.md", "other.md"],
    }
    plain = load_config(
        str(ROOT / "mkdocs.yml"), strict=True, plugins=[], theme="mkdocs", extra_css=[], **ours
    )
    with pytest.raises(Abort):
        build(plain)
    (docs / "index.md").write_text("# Title\n\n[a](other.md#other)\n")
    build(plain)


# The configuration reference


def choices() -> list[tuple[str, str, str]]:
    """(command, algorithm, kind of engine), as far as a command has them."""
    found = []
    for command, (schema, _, _) in COMMANDS.items():
        algorithms = schemas.ALGORITHMS if command == "rl" else ["prime"]
        kinds = schemas.KINDS if "engine" in getattr(schemas, schema).model_fields else ["transformers"]
        found += [(command, algorithm, kind) for algorithm in algorithms for kind in kinds]
    return found


@pytest.mark.parametrize(("command", "algorithm", "kind"), choices())
def test_reference__has_every_setting(command: str, algorithm: str, kind: str, hooks: ModuleType):
    schema = getattr(schemas, COMMANDS[command][0])
    known = schemas.keys_of(schema, {"algorithm": algorithm, "engine.kind": kind})
    shown = re.findall(r"^### `(.+)`\n\n.* · default .*\n\n\S", hooks.reference()[command], re.MULTILINE)
    assert set(known) <= set(shown)
    assert len(shown) == len(set(shown))


def test_reference__says_what_the_schema_says(hooks: ModuleType):
    """By hand: a range, a list, words, a number or a word, what one algorithm alone has, and what differs by it."""
    pages = hooks.reference()
    for page, text in {
        "rl": "### `rollout.responses`\n\ninteger ≥ 2, ≤ 16,384 · default `4`\n\nK, responses to each prompt.\n",
        "sft": "### `optimizer.lora.targets`\n\nlist of texts · default empty\n\nLinear layers that get an adapter",
        "ask": "### `kind`\n\n`math` or `code` · default `math`\n\nWhat the template asks for",
        "prm": "### `beta`\n\nnumber ≥ 1e-06, ≤ 1e+06 or `auto` · default `auto`\n\nScale of the log-ratio",
        "evaluate": "### `engine.urls`\n\nlist of texts · default empty · `engine.kind: server`\n\nWhere they listen",
        "generate": "### `engine.kind`\n\n`auto`, `transformers`, `vllm` or `server` · default `auto`\n\n",
        "benchmark": "### `data.split`\n\ntext · default `test`\n\nSplit of a hub data set",
    }.items():
        assert text in pages[page]
    alone = re.findall(r"^### `(.+)`\n\n.* · `algorithm: distill`\n", pages["rl"], re.MULTILINE)
    assert {"distill.candidates", "distill.kl_coefficient"} <= set(alone)
    assert not {"policy.lr", "advantage.estimator"} & set(alone)
    estimator = pages["rl"].partition("### `advantage.estimator`\n\n")[2].partition("\n")[0]
    assert estimator == "`rloo`, `grpo` or `reinforce` · default `rloo` · `algorithm: prime | outcome`"


# The pages on GitHub and here


class Blocks(HTMLParser):
    """Headings, items, cells and code of a page, with their text; paragraphs of an item are one text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = [""]
        self.is_link = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_link = ("class", "headerlink") in attrs
        if tag in ("h1", "h2", "h3", "li", "ul", "ol", "td", "th", "pre", "img", "table"):
            self.found += [f"<{tag}>", ""]

    def handle_data(self, data: str) -> None:
        self.found[-1] += "" if self.is_link else re.sub(r"\s", "", data)

    def handle_endtag(self, tag: str) -> None:
        self.is_link = False


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages__read_alike_on_github_and_on_the_site(page: Path):
    """Python-Markdown and CommonMark differ in lists and in what is indented."""
    ours, text = load_config(str(ROOT / "mkdocs.yml")), page.read_text(encoding="utf-8")
    here = markdown(text, extensions=ours.markdown_extensions, extension_configs=ours.mdx_configs)
    assert Blocks(here).found == Blocks(MarkdownIt("commonmark").enable("table").render(text)).found


def test_blocks__see_a_list_that_is_none():
    """Else the test above would pass on anything."""
    text = "words\n- item\n"
    assert Blocks(markdown(text)).found != Blocks(MarkdownIt("commonmark").render(text)).found
