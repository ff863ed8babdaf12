"""From a YAML file to settings, with faults named by file and key.

Two settings, TAGS, decide which others there are: `algorithm` chooses the class of `openprime rl`, `engine.kind` that
of its section. Where a flag changes the one of a file, the file's keys that the new choice lacks are left out.
"""

import argparse
import difflib
import os
import reprlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from openprime.config.commands import ALGORITHMS, RLConfig
from openprime.config.sections import EngineConfig
from openprime.types import UserError

Schema = TypeVar("Schema", bound=BaseModel)
Tags = dict[str, str]
TAGS: Tags = {"algorithm": "prime", "engine.kind": "auto"}
"""Settings that decide which others there are, and their defaults."""
MOST_VALUES, DEEPEST = 10_000, 20
KINDS = [engine.model_fields["kind"].default for engine in get_args(get_args(EngineConfig)[0])]


def package_configs() -> Path:
    """The folder with the configurations that come with the package."""
    here = Path(__file__).resolve().parent.parent
    return next(place for place in (here / "configs", here.parent.parent / "configs") if place.is_dir())


def find_config(name: str) -> Path:
    """A configuration file: as named, or among those that come with the package."""
    ours = package_configs()
    for place in (Path(name), ours.parent / name, ours / name):
        if place.is_file():
            return place
    raise UserError(f"{name}: no such configuration file, neither here nor among those of the package")


def read_tags(args: list[str]) -> Tags:
    """The TAGS that flags give: `--algorithm outcome`, `--engine.kind=vllm`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for tag in TAGS:
        parser.add_argument(f"--{tag}", nargs="?")
    return {tag: value for tag, value in vars(parser.parse_known_args(args)[0]).items() if value}


def tags_of(values: dict[str, Any]) -> Tags:
    """The TAGS of nested keys and values."""
    return TAGS | tags_in(values)


def tags_in(values: dict[str, Any]) -> Tags:
    """The same, only those that are named."""
    engine = values.get("engine")
    kind = engine.get("kind") if isinstance(engine, dict) else None
    found = {"algorithm": values.get("algorithm"), "engine.kind": kind}
    return {tag: str(value) for tag, value in found.items() if value is not None}


def read_config(schema: type[Schema], path: Path, flags: Tags | None = None) -> Schema:
    """Read a YAML file into a schema, naming each fault by file and key; `flags` are TAGS that go over the file's."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    values = parse_yaml(text, str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    return build(schema, values, flags, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Plain values from YAML. Raises UserError, in one line, for anything else, and for what is without measure."""
    try:
        values = yaml.safe_load(text)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
        AttributeError,
    ) as error:  # it stumbles over its own tags
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())[:500]}") from error
    parts, count = [(values, 0)], 0
    while parts:  # aliases can make a value endless
        value, depth = parts.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise UserError(
                f"{where}: more than {MOST_VALUES:,} values, or more than {DEEPEST} within each other"
            )
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        parts += [(part, depth + 1) for part in inner]
    return values


def build(
    schema: type[Schema], values: dict[str, Any], flags: Tags | None = None, where: str = "the flags"
) -> Schema:
    """Settings from nested keys and values, those that are not named at their defaults.

    RLConfig becomes the class of the algorithm. Raises UserError for every fault, with `where` it was found.
    """
    own = tags_of(values)
    tags = own | (flags or {})
    if tags != own:
        values, left_out = fitting(values, keys_of(schema, tags, where), keys_of(schema, own, where))
        if left_out and os.environ.get("RANK", "0") == "0":
            chosen = ", ".join(f"{tag}={tags[tag]}" for tag in TAGS if tags[tag] != own[tag])
            print(f"note: {chosen} has no {', '.join(left_out)}: left out of {where}", file=sys.stderr)
    if tags["engine.kind"] != own["engine.kind"]:
        values = merge(values, {"engine": {"kind": tags["engine.kind"]}})
    if schema is RLConfig:
        values = values | {"algorithm": tags["algorithm"]}
    found = method(schema, tags, where)
    try:
        return found.model_validate(merge(found().model_dump(), values))
    except ValidationError as error:
        raise UserError(explain(error, schema, tags, where)) from error


def method(schema: type[Schema], tags: Tags, where: str = "") -> type[Schema]:
    """The schema itself, or the algorithm's where it is RLConfig."""
    if schema is not RLConfig:
        return schema
    name = tags["algorithm"]
    if name not in ALGORITHMS:
        raise UserError(f"{where}: no algorithm {name!r}; {nearest(name, ALGORITHMS)}")
    return ALGORITHMS[name][0]  # pyright: ignore[reportReturnType]


def nearest(name: str, known: Iterable[str]) -> str:
    """Proposes what may have been meant."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"


def fitting(values: dict, keys: list[str], before: list[str], prefix: str = "") -> tuple[dict, list[str]]:
    """The values without what is in `before` and not in `keys`, and the dotted keys of that."""
    kept, left_out = {}, []
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and path not in keys and has(keys, path):
            kept[name], more = fitting(value, keys, before, f"{path}.")
            left_out += more
        elif has(before, path) and not has(keys, path):
            left_out.append(path)
        else:
            kept[name] = value
    return kept, left_out


def merge(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values over the defaults, section by section: a section keeps the defaults that it does not name."""
    merged = dict(defaults)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(defaults.get(key), dict)
        merged[key] = merge(defaults[key], value) if both else value
    return merged


AUTO = "literal['auto']"
"""Where pydantic puts a fault of the second member of `number | Literal["auto"]`."""


def explain(error: ValidationError, schema: type[BaseModel], tags: Tags, where: str) -> str:
    """One line a fault: key path, what is wrong, and for an unknown key who has it or the nearest valid one."""
    lines, faults = [], error.errors()
    number_or_auto = {fault["loc"][:-1] for fault in faults if fault["loc"][-1:] == (AUTO,)}
    for fault in faults:
        if fault["loc"][-1:] == (AUTO,):  # its other member, the number, says both
            continue
        is_number = fault["loc"][:-1] in number_or_auto
        path = ".".join(str(part) for part in (fault["loc"][:-1] if is_number else fault["loc"]))
        path = path.replace(
            f"engine.{tags['engine.kind']}.", "engine."
        )  # a union's member has its tag before it
        if fault["type"] == "extra_forbidden":
            said = elsewhere(schema, path, tags) or unknown(path, keys_of(schema, tags))
            lines.append(f"{where}: {said}")
        else:
            said = fault["msg"].removeprefix("Value error, ") + (", or 'auto'" if is_number else "")
            found = "" if isinstance(fault["input"], dict) else f" (found {reprlib.repr(fault['input'])})"
            lines.append(f"{where}: {path}: {said}{found}")
    return "\n".join(lines)


def elsewhere(schema: type[BaseModel], path: str, tags: Tags) -> str:
    """Says which algorithms or engines have a key that the chosen ones lack; empty where none has it."""
    choices = [("algorithm", name) for name in ALGORITHMS] + [("engine.kind", kind) for kind in KINDS]
    having = [f"{tag}={name}" for tag, name in choices if has(keys_of(schema, tags | {tag: name}), path)]
    return f"{path} needs {' or '.join(having)}" if having else ""


def refuse_others(schema: type[BaseModel], config: BaseModel, args: list[str]) -> None:
    """Refuse flags of an algorithm or engine that `config` does not have, and say whose they are."""
    tags = tags_of(config.model_dump())
    keys = keys_of(schema, tags)
    for path in (arg[2:].partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--")):
        if not has(keys, path) and (whose := elsewhere(schema, path, tags)):
            raise UserError(whose)


def refuse_flags(config: BaseModel, args: list[str]) -> None:
    """Raises UserError for flags that are unknown, and for values that do not fit, as for those of a file."""
    values, defaults = config.model_dump(), config.model_dump()
    keys = keys_of(type(config), tags_of(values))
    flags: dict[str, list[str]] = {}
    given: list[str] = []
    for arg in args:
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            given = flags[name.replace("-", "_")] = [value] if equals else []
        else:
            given.append(arg)
    for path, given in flags.items():
        *parents, name = path.split(".")
        if not has(keys, path):
            if not has(keys, ".".join([*parents, name.removeprefix("no_")])):
                raise UserError(unknown(path, keys))
            continue
        default: Any = defaults
        for part in (*parents, name):
            default = default[part]
        if isinstance(default, dict | tuple | list):
            value: Any = flag_value(given, type(default), f"the flags: {path}")
        elif not given:
            continue
        else:
            value = given[-1]
        for part in reversed((*parents, name)):
            value = {part: value}
        values = merge(values, value)
    build(RLConfig if isinstance(config, RLConfig) else type(config), values)


def unknown(path: str, known: list[str]) -> str:
    """Names the valid key that is nearest to an unknown one."""
    *parents, name = path.split(".")
    depth = len(parents)
    here = {parts[depth] for k in known if len(parts := k.split(".")) > depth and parts[:depth] == parents}
    beside = [".".join([*parents, k]) for k in difflib.get_close_matches(name, sorted(here), 1)]
    same = [k for k in known if k.split(".")[-1] == name]
    near = beside or same or difflib.get_close_matches(path, known, 1)
    if ".".join(parents) in known:  # a single value, of which there are no parts
        near = [".".join(parents)]
    hint = f"did you mean {near[0]}?" if near else f"valid here: {', '.join(sorted(here))}"
    return f"unknown key {path}; {hint}"


def has(keys: list[str], path: str) -> bool:
    """Whether a dotted path is one of the keys or a section of them."""
    return any(key == path or key.startswith(f"{path}.") for key in keys)


def keys_of(schema: type[BaseModel], tags: Tags, where: str = "") -> list[str]:
    """All keys of a schema, with dots, under these TAGS."""
    return list(types_of(schema, tags, where))


def types_of(schema: type[BaseModel], tags: Tags, where: str = "", prefix: str = "") -> dict[str, Any]:
    """The type of each key of a schema, with dots, under these TAGS."""
    types: dict[str, Any] = {}
    for name, field in method(schema, tags, where).model_fields.items():
        classes = [c for c in get_args(field.annotation) or [field.annotation] if isinstance(c, type)]
        sections = [c for c in classes if issubclass(c, BaseModel)]
        if len(sections) > 1:
            sections = [c for c in sections if c.model_fields["kind"].default == tags["engine.kind"]]
        key = prefix + name
        types |= types_of(sections[0], tags, where, f"{key}.") if sections else {key: field.annotation}
    return types


def choices(kind: Any) -> list[str]:
    """The words that a value of this type may be, where it is one of several words."""
    if get_origin(kind) is Literal:
        return [value for value in get_args(kind) if isinstance(value, str)]
    return [word for part in get_args(kind) for word in choices(part)]


def flag_value(words: list[str], kind: type, where: str = "the flags") -> Any:
    """What the words after a flag say: a dict is YAML, as in a file, a tuple or list its words, or YAML in brackets.

    Raises UserError for what is not YAML, with `where` it was found.
    """
    text = " ".join(words)
    return parse_yaml(text, where) if kind is dict or text.startswith("[") else words
