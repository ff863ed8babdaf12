"""Benchmarks by name: small YAML files in configs/benchmarks, or a file of the user's own."""

import difflib

from openprime.config import BenchmarkConfig, find_config, package_configs, read_config
from openprime.types import UserError


def find_benchmark(name: str) -> tuple[str, BenchmarkConfig]:
    """A benchmark by its name, as `math-500`, `MATH500` or `math_500`, or by a YAML file; returns its name too.

    Raises ValueError for a name that is not there, with the nearest ones.
    """
    if name.endswith((".yaml", ".yml")):
        path = find_config(name)
        return path.stem, read_config(BenchmarkConfig, path)
    paths = (package_configs() / "benchmarks").glob("*.yaml")
    entries = {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}
    alike = {_plain(entry): entry for entry in entries}
    found = alike.get(_plain(name))
    if found is None:
        near = difflib.get_close_matches(_plain(name), alike, 1)
        hint = f"did you mean {alike[near[0]]}? There are" if near else "there are"
        raise UserError(
            f"no benchmark {name!r}; {hint}: {', '.join(entries)}; or name a YAML file of your own"
        )
    return found, read_config(BenchmarkConfig, entries[found])


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
