"""What mkdocs adds to these pages when it builds the site: the configuration reference, made from the schema, the
notebooks, and the contributing guide and changelog of the repository's root."""

import ast
import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from openprime import config as schemas
from openprime.cli import COMMANDS
from openprime.commands.configs import about

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
OF_THE_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
"""Files of the repository's root that pages link to, and what they are on the site."""


Tags = dict[str, str]
"""`algorithm` and `engine.kind`, which decide what other settings there are."""


# Hooks of mkdocs


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    made = {f"configuration/{name}.md": text for name, text in reference().items()}
    made |= {
        OF_THE_ROOT[name]: (ROOT / name).read_text("utf-8") for name in ("CONTRIBUTING.md", "CHANGELOG.md")
    }
    made |= {
        f"notebooks/{path.name}": path.read_text("utf-8") for path in (ROOT / "notebooks").glob("*.ipynb")
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files of the root, and from them, as they are on the site; a page's title where its file stands."""
    for name, page in OF_THE_ROOT.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(name)}", f"]({page}", markdown)
    markdown = markdown.replace("](docs/", "](").replace("](../notebooks/", "](notebooks/")
    return re.sub(
        r"\[(?:docs/)?([\w-]+\.md)\]\(\1", lambda found: f"[{title_of(found[1])}]({found[1]}", markdown
    )


def title_of(page: str) -> str:
    """The heading of a page of docs/."""
    return (ROOT / "docs" / page).read_text("utf-8").partition("\n")[0].removeprefix("# ")


# The configuration reference


@dataclass(frozen=True)
class Setting:
    """A setting as one choice of algorithm and engine has it."""

    key: str
    kind: str
    default: str
    about: str


@dataclass
class Entry:
    """A key with all its variants: setting -> the choices of algorithm and engine that have it."""

    section: str
    variants: dict[Setting, list[Tags]] = field(default_factory=dict)


def reference() -> dict[str, str]:
    """Markdown pages by name: an overview, one page a command, and the file of a benchmark."""
    pages = {"index": overview()}
    for command, (schema_name, _, what) in COMMANDS.items():
        schema = getattr(schemas, schema_name)
        file = "" if "config" in schema.positional else " [CONFIG.yaml]"
        alone = "".join(f" [{name.upper()}]" for name in schema.positional)
        usage = f"{what[0].upper()}{what[1:]}.\n\n```text\nopenprime {command}{file}{alone} [--flags]\n```\n"
        pages[command] = command_page(f"openprime {command}", usage, schema)
    usage = "One small YAML file each, in `configs/benchmarks`; yours too: `--benchmark my.yaml`.\n"
    pages["benchmark"] = command_page("A benchmark's file", usage, schemas.BenchmarkConfig)
    return pages


def overview() -> str:
    """How a command is told what to do, and which commands and files there are."""
    commands = "\n".join(f"| [`{name}`]({name}.md) | {what} |" for name, (_, _, what) in COMMANDS.items())
    ours = schemas.package_configs()
    paths = sorted(ours.rglob("*.yaml"), key=lambda path: path.relative_to(ours).parts)
    files = "\n".join(f"| `configs/{path.relative_to(ours).as_posix()}` | {about(path)} |" for path in paths)
    return f"""# Configuration

A run is a YAML file and flags over it: `openprime rl configs/rl/tiny.yaml --steps 5`. A setting has the same name in
both:

| in the file | as a flag |
|---|---|
| `rollout: {{max_response_tokens: 64}}` | `--rollout.max-response-tokens 64` |
| `parallel: {{cpu_offload: true}}` | `--parallel.cpu-offload`, and `--parallel.no-cpu-offload` for false |
| `policy: {{lora: {{targets: [q_proj, v_proj]}}}}` | `--policy.lora.targets q_proj v_proj` |
| `data: {{gym: {{min_terms: 2}}}}` | `--data.gym '{{min_terms: 2}}'` |

An unknown key, a value that is out of range, and a setting that another algorithm or engine has are refused, by name
and before any work. The resolved settings of a run are in `config.yaml` of its folder. `openprime COMMAND --help` says
what stands here.

## Commands

| command | what it does |
|---|---|
{commands}

## Files that come with the package

Named as here they are found from any folder.

| file | what it is |
|---|---|
{files}
"""


def command_page(title: str, usage: str, schema: type[BaseModel]) -> str:
    """One page: every setting under its section, with type, default and description."""
    entries: dict[str, Entry] = {}
    intros: dict[str, list[str]] = {}
    choices = choices_of(schema)
    for tags in choices:
        for section, owner, setting in settings(schema, tags):
            said = intros.setdefault(section, [])
            if section and owner not in said:
                said.append(owner)
            entry = entries.setdefault(setting.key, Entry(section))
            entry.variants.setdefault(setting, []).append(tags)
    text = [f"# {title}\n", usage]
    required = getattr(schema, "required", ())
    first = [key for key in required if key in entries]
    entries = {key: entries[key] for key in (*first, *(key for key in entries if key not in first))}
    if required:
        text.append(f"Needed: {', '.join(f'`{key}`' for key in required)}.\n")
    for section in sorted(intros, key=lambda name: (name != "", [*intros].index(name))):
        text.append(f"## {f'`{section}`' if section else 'Settings'}\n")
        text += [f"{intro}\n" for intro in intros[section]]
        for key, entry in entries.items():
            if entry.section == section:
                text += [f"### `{key}`\n", *described(entry, choices)]
    if not entries:
        text.append("It has no settings.\n")
    return "\n".join(text)


def choices_of(schema: type[BaseModel]) -> list[Tags]:
    """The choices of algorithm and engine that decide which settings there are."""
    algorithms = list(schemas.ALGORITHMS) if schema is schemas.RLConfig else ["prime"]
    kinds = schemas.KINDS if "engine" in schema.model_fields else ["transformers"]
    return [{"algorithm": a, "engine.kind": k} for a, k in itertools.product(algorithms, kinds)]


def settings(
    schema: type[BaseModel], tags: Tags, defaults: Any = None, section: str = ""
) -> Iterator[tuple[str, str, Setting]]:
    """(section, what the section is, setting) of all settings, depth first."""
    if defaults is None:
        engine = {"engine": {"kind": tags["engine.kind"]}} if "engine" in schema.model_fields else {}
        defaults = schemas.build(schema, engine, {"algorithm": tags["algorithm"]})
        schema = type(defaults)
    said = docstrings(schema)
    for name, found in type(defaults).model_fields.items():
        key, value = f"{section}.{name}" if section else name, getattr(defaults, name)
        if isinstance(value, BaseModel):
            yield from settings(type(value), tags, value, key)
        else:
            shown = ("", "") if key in tags else (kind_of(found.annotation, found.metadata), plain(value))
            yield section, inspect.cleandoc(schema.__doc__ or ""), Setting(key, *shown, said[name])


def described(entry: Entry, choices: list[Tags]) -> Iterator[str]:
    """The variants of an entry, each with the choices that have it where not all do."""
    for setting, having in entry.variants.items():
        if setting.key in having[0]:  # what chooses is described once
            values = dict.fromkeys(tags[setting.key] for tags in choices)
            yield f"{words(values)} · default `{next(iter(values))}`\n\n{setting.about}\n"
            return
        only = [
            f"`{tag}: {' | '.join(values)}`"
            for tag in having[0]
            if set(values := list(dict.fromkeys(tags[tag] for tags in having)))
            != {tags[tag] for tags in choices}
        ]
        yield " · ".join([f"{setting.kind}", f"default {setting.default}", *only]) + f"\n\n{setting.about}\n"


def docstrings(schema: type[BaseModel]) -> dict[str, str]:
    """The text below each field of a class, as --help shows it; a field that a subclass only changes keeps it."""
    of_bases = [texts_of(base.__module__).get(base.__name__, {}) for base in reversed(schema.__mro__)]
    return {name: text for found in of_bases for name, text in found.items()}


@cache
def texts_of(module: str) -> dict[str, dict[str, str]]:
    """class -> field -> the text below it, of a module of the schema."""
    found: dict[str, dict[str, str]] = {}
    if not module.startswith(schemas.__name__):
        return found
    for part in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(part, ast.ClassDef):
            texts = found[part.name] = {}
            for node, below in itertools.pairwise(part.body):
                match node, below:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        texts[name] = inspect.cleandoc(text)
    return found


def kind_of(annotation: Any, metadata: list[Any]) -> str:
    """A type in words, with its range."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(inner[0], list(inner[1:]))
    if origin in (Union, UnionType):
        return " or ".join(kind_of(part, metadata) for part in inner)
    if origin is Literal:
        return words(inner)
    names = {str: "text", bool: "true or false", int: "integer", float: "number", type(None): "unset"}
    name = names.get(annotation) or {tuple: "list of texts", dict: "table"}[origin]
    limits = [limit for part in metadata for limit in (getattr(part, "metadata", None) or [part])]
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {bound:,}" if isinstance(bound, int) else f"{sign} {bound:g}"
        for attribute, sign in signs.items()
        for limit in limits
        if (bound := getattr(limit, attribute, None)) is not None and bound < 2**31 - 1
    ]
    return " ".join([name, ", ".join(bounds)]).strip()


def words(values: Any) -> str:
    """`a`, `b` or `c`."""
    *first, last = [f"`{value}`" for value in values]
    return f"{', '.join(first)} or {last}" if first else last


def plain(value: Any) -> str:
    """A default as a file has it."""
    if value is None:
        return "unset"
    if value in ("", (), {}):
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    return f"`{value}`" if str(value).isprintable() else f"`{json.dumps(value)}`"
