"""Which module may import which, read from the source; and what the command line may load."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(str(find_spec("openprime").origin)).parent  # type: ignore[union-attr]
BASIS = {"types", "config"}
METHOD = BASIS | {"colours", "ranks", "models", "engines", "verifiers", "data", "run", "prime"}
ALLOWED = {
    "types": set(),
    "colours": set(),
    "config": {"types"},
    "ranks": {"types"},
    "verifiers": BASIS,
    "tasks": BASIS,
    "data": BASIS | {"tasks"},
    "models": BASIS | {"ranks", "data"},
    "engines": BASIS | {"ranks", "models"},
    "run": BASIS | {"", "ranks", "models"},
    "prime": METHOD,
    "plan": METHOD,
    "evaluation": METHOD | {"tasks"},
    "preparation": METHOD | {"evaluation"},
    "commands": METHOD | {"tasks", "evaluation"},
    "cli": {"", "types", "config", "prime", "commands", "evaluation", "plan", "preparation"},
    "notebook": METHOD | {"commands"},
    "__main__": {"cli"},
    "": {"types", "prime", "evaluation", "notebook"},
}
"""Room -> the rooms it may import from, beside itself; "" is the package's own __init__."""
EXCEPTIONS = {("commands.demo", "cli")}
HEAVY = {"torch", "transformers", "datasets", "numpy", "plotly", "math_verify", "tensorboard"}
LAZY = (
    {("data", "tasks")}
    | {("", room) for room in ("types", "prime", "evaluation", "notebook")}
    | {("notebook", room) for room in ("commands", "prime", "run")}
    | {("cli", room) for room in ("commands", "prime", "evaluation", "plan", "preparation")}
)
"""Only inside functions."""


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> list[tuple[str, bool]]:
    """(module of the package, whether at the top level) for each import in a module, lazy ones included."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    lazy = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    )
    inner = {id(node) for outer in lazy for node in ast.walk(outer)}
    found = []
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            base = node.module or ""
            below = base.removeprefix("openprime").removeprefix(".")
            for alias in node.names:
                inside = f"{below}.{alias.name}".removeprefix(".")
                targets.append(
                    f"openprime.{inside}" if inside in MODULES and base.startswith("openprime") else base
                )
        for target in targets:
            if target == "openprime" or target.startswith("openprime."):
                found.append((target.removeprefix("openprime").removeprefix("."), id(node) not in inner))
    return found


@pytest.mark.parametrize("name", list(MODULES), ids=[name or "openprime" for name in MODULES])
def test_imports__follow_the_dependency_direction(name: str):
    room = name.split(".")[0]
    assert room in ALLOWED, f"{name}: a new room needs a line in ALLOWED"
    for target, at_top in imports(name):
        other = target.split(".")[0]
        assert target in MODULES, f"{name} imports openprime.{target}, which is no module"
        if (name, other) in EXCEPTIONS:
            continue
        assert other == room or other in ALLOWED[room], f"{name} must not import openprime.{target}"
        assert not (at_top and (room, other) in LAZY), (
            f"{name} may import openprime.{target} in functions only"
        )


def test_imports__has_edges_that_are_known_to_be_there():
    """Else the test above would pass on an empty graph."""
    assert ("prime.rewards", True) in imports("prime.advantages")
    assert ("models.logprobs", True) in imports("engines.transformers")
    assert ("prime.build", True) in imports("prime.loop")
    assert ("tasks", False) in imports("data.readers")
    assert len(MODULES) > 25


def test_imports__no_module_imports_itself_in_a_circle():
    """Top-level imports alone: a circle among these fails or not by the order of loading."""
    graph = {name: {t for t, top in imports(name) if top and t != name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_imports__the_mathematics_knows_no_ranks_no_models_and_no_files():
    for name, path in MODULES.items():
        if name in ("prime.rewards", "prime.losses", "prime.advantages"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for imported in names:
                    assert imported.split(".")[0] not in {"transformers", "pathlib", "os", "io", "json"}, name
                    assert not imported.startswith("torch.distributed"), name


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("openprime.cli", HEAVY),
        ("openprime.config", HEAVY),
        ("openprime", HEAVY),
        ("openprime.types", HEAVY),
        ("openprime.prime.loop", {"plotly", "math_verify", "reasoning_gym", "vllm"}),
    ],
)
def test_import__loads_nothing_that_it_does_not_need(module: str, heavy: set[str]):
    code = f"import sys, {module}\nprint(sorted({heavy!r} & set(sys.modules)))\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT.parent), "PATH": ""},
    )
    assert done.stdout == "[]\n"
