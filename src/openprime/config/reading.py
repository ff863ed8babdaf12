"""From a YAML file to settings, with faults named by file and key."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from openprime.types import UserError

Schema = TypeVar("Schema", bound=BaseModel)


def package_configs() -> Path:
    """The folder with the configurations that come with the package."""
    here = Path(__file__).resolve().parent.parent
    return next(place for place in (here / "configs", here.parent.parent / "configs") if place.is_dir())


def find_config(name: str) -> Path:
    """A configuration file: as named, or among those that come with the package."""
    here = Path(__file__).resolve().parent.parent
    places = [Path(name), *(root / name for root in (here, here.parent.parent)), here / "configs" / name]
    places.append(here.parent.parent / "configs" / name)
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"{name}: no such configuration file, neither here nor among those of the package")


def read_config(schema: type[Schema], path: Path) -> Schema:
    """Read a YAML file into a schema, naming each fault by file and key."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    try:
        return schema.model_validate(merge(schema().model_dump(), values))
    except ValidationError as error:
        raise UserError(explain(error, schema, str(path))) from error


def merge(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values over the defaults, section by section: a section keeps the defaults that it does not name."""
    merged = dict(defaults)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(defaults.get(key), dict)
        merged[key] = merge(defaults[key], value) if both else value
    return merged


def explain(error: ValidationError, schema: type[BaseModel], where: str) -> str:
    """One line a fault: key path, what is wrong, and for an unknown key the nearest valid one."""
    lines = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            *parents, name = path.split(".")
            known = key_paths(schema)
            depth = len(parents)
            here = {k.split(".")[depth] for k in known if k.split(".")[:depth] == parents}
            beside = [".".join([*parents, k]) for k in difflib.get_close_matches(name, sorted(here), 1)]
            elsewhere = [k for k in known if k.split(".")[-1] == name] or difflib.get_close_matches(
                path, known, 1
            )
            near = (beside + elsewhere)[:1]
            hint = f"; did you mean {near[0]}?" if near else f"; valid here: {', '.join(sorted(here))}"
            lines.append(f"{where}: unknown key {path}{hint}")
        else:
            lines.append(f"{where}: {path}: {fault['msg']} (found {fault['input']!r})")
    return "\n".join(lines)


def key_paths(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys of a schema, with dots."""
    paths = []
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            paths += key_paths(kind, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths
