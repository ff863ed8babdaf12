"""`openprime configs`: the configurations that come with the package, one line each."""

import re
from pathlib import Path

from openprime.config import ConfigsConfig, package_configs, parse_yaml


def configs(config: ConfigsConfig) -> None:
    """Print the name of every configuration, as commands find it, and what it is; at last where the files are."""
    config.check()
    folder = package_configs()
    found = {
        path.relative_to(folder.parent).as_posix(): about(path) for path in sorted(folder.rglob("*.yaml"))
    }
    width = max(map(len, found))
    for name, line in found.items():
        print(f"{name:<{width}}  {line}")
    print(f"\nThe files are in {folder}; commands find them by these names from everywhere.")


def about(path: Path) -> str:
    """What a file says of itself: the first sentence of the comment that it begins with, or its `about`."""
    text = path.read_text(encoding="utf-8")
    begin = re.match(r"(?:#.*\n)+", text)
    if not begin:
        return str(parse_yaml(text, str(path)).get("about", ""))
    comment = " ".join(line.removeprefix("#").strip() for line in begin[0].splitlines())
    return re.split(r"(?<=\.) ", comment, maxsplit=1)[0].removesuffix(".")
