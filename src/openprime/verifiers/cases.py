"""Tests of programs, from the rows of data sets to data: inputs, expected outputs, how to compare them.

Tests written as Python asserts are converted by walking their syntax tree: no code of a row is run.
"""

import ast
import base64
import dataclasses
import io
import json
import math
import operator
import pickle
import pickletools
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

LARGEST = 1_000_000
"""Items and characters of a constant in an assert; bits of a power."""
DEEPEST = 50
"""Nested containers of an argument or an expected value."""
TOLERANCE = 1e-6
"""Relative or absolute, where a decimal number is expected."""
UNPACKED = 1 << 28
"""Bytes of a row's private tests, decompressed."""
OPCODES = 100
"""Of the pickle around them; a text has six."""

SURROGATE = re.compile("[\ud800-\udfff]")
NAMED = re.compile(r"\s*[^\W\d]\w*\s*=(?!=)")
"""The start of arguments by name."""
METHOD = "Solution()."
PARTS = ("public_tests", "private_tests", "generated_tests")
"""Columns of CodeContests; all three are the tests."""
CHECKERS = ("checker", "generated_checker")
DEFINITIONS = {ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef}
NUMBERS = (bool, int, float, complex)
PLAIN = (*NUMBERS, type(None), str, bytes, list, tuple, dict, set, frozenset)
CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau, "inf": math.inf, "nan": math.nan}
KINDS: dict[type, Literal["equal", "differs", "is", "is_not"]] = {
    ast.Eq: "equal",
    ast.NotEq: "differs",
    ast.Is: "is",
    ast.IsNot: "is_not",
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (abs, bool, complex, dict, float, frozenset, int, len, list, round, set, sorted, str, tuple)
}
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}


@dataclass(frozen=True, slots=True)
class Check:
    """Comparison of the result of one case with what is expected."""

    kind: Literal["equal", "differs", "is", "is_not", "truth"] = "equal"
    wrappers: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """Names in FUNCTIONS and further arguments, applied to the result in this order."""
    relative: float = TOLERANCE
    absolute: float = TOLERANCE
    integers: bool = False
    """The tolerance holds where an integer is expected too."""
    tokens: bool = False
    """Texts are compared word by word, wherever their lines end."""
    any_order: bool = False
    """Lines, words (with `tokens`) or the items of a list may stand in any order."""
    ignore_case: bool = False
    yes_no: bool = True
    """YES is Yes in a text, as in most contests."""

    @property
    def is_truth(self) -> bool:
        """True where nothing is asked but a truth value."""
        return self.kind == "truth" and not self.wrappers


EQUAL = Check()
COMPARISONS: dict[str, dict[str, Any]] = {
    "exact": {"relative": 0.0, "absolute": 0.0, "yes_no": False},
    **{name: {name: True} for name in ("tokens", "any_order", "ignore_case")},
}
"""What a row may name in `comparison`, beside `tolerance`, and the fields of Check that it sets."""


@dataclass(frozen=True, slots=True)
class Tests:
    """The cases of one task, N of them."""

    inputs: tuple[Any, ...]
    """[N] texts on stdin (no fn_name) or lists of positional arguments."""
    outputs: tuple[Any, ...]
    """[N] expected texts on stdout, or values."""
    fn_name: str | None
    """The function, or the method of class Solution, that is called. With `keywords` the method goes first."""
    keywords: tuple[dict[str, Any], ...] = ()
    """[N] arguments by name, where there are any or a method is called."""
    prompt: str = ""
    """Code put before the program: HumanEval's signature and helpers, MBPP's and LeetCode's imports."""
    exact: bool = False
    """The outputs come from Python: a tuple is no list. From JSON: a tuple will do for a list."""
    single: bool = False
    """The outputs may be one-element lists around the value, as in APPS: both are accepted."""
    checks: tuple[Check, ...] = ()
    """[N], or none: all are compared for equality."""
    checker: str = ""
    """A Python program that decides in the place of a comparison (`code.py` says how)."""
    imports: tuple[str, ...] = ()
    """Packages outside the standard library that the tests or the prompt import."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What became of a row's tests."""

    packed: bytes = b""
    """By `pack_tests`."""
    fault: str = ""
    """The reason why they cannot be judged."""
    constant: str = ""
    """A statement that passes them all, whatever the input."""


def int_key(key: Any) -> Any:
    """The integer that a key of JSON, always a text, may stand for; else the key."""
    return int(key) if type(key) is str and re.fullmatch(r"-?[0-9]{1,18}", key) else key


def pack_tests(tests: Tests) -> bytes:
    """Tests as they are kept with a prompt and sent to a worker: less memory than the row that they were read from."""
    return zlib.compress(pickle.dumps(tests), 1)


def unpack_tests(packed: bytes) -> Tests:
    """Tests that `pack_tests` packed: never anything out of a row, for a pickle can run code."""
    return pickle.loads(zlib.decompress(packed))


def read_tests(row: Mapping[str, Any], answer: Any) -> Tests:
    """The tests of a row, whatever its shape.

    HumanEval, LeetCode (test, entry_point, prompt), MBPP (test_list, test_imports) and DeepCoder (functional):
    asserts, converted. LiveCodeBench: public_test_cases and private_test_cases together; CodeContests:
    public_tests, private_tests and generated_tests. Else {"inputs", "outputs", "fn_name"} or [{"input",
    "output", "testtype"}], as data or as JSON, in the answer or in the columns reward_model, tests,
    input_output, test_cases, public_test_cases or official_tests; with an entry_point an input may be
    arguments by name, `a = [1], b = 2`, and the output a value. Beside them, or in the row, may stand a
    `comparison` and a `checker` (or generated_checker).

    Raises ValueError, with the reason, for what cannot be read or does not convert.
    """
    entry = str(row["entry_point"]) if row.get("entry_point") else None
    source = row.get("test") or row.get("functional")
    if source and (entry or "assert" in str(source)):
        return _judged_by(_from_asserts(_texts(source), entry, _code(row.get("prompt"))), row)
    if row.get("test_list"):
        asserts = _texts(row.get("test_setup_code")) + _texts(row["test_list"])
        return _judged_by(_from_asserts(asserts, entry, "\n".join(_texts(row.get("test_imports")))), row)
    found = _found(row, answer)
    if isinstance(found, Mapping) and found.get("functional"):
        prompt = _code(row.get("prompt"))
        return _judged_by(_from_asserts(_texts(found["functional"]), entry, prompt), found, row)
    settings = found if isinstance(found, Mapping) else {}
    if isinstance(found, Mapping) and found.get("test_cases"):
        found = _json(found["test_cases"])
    fn_name = row.get("fn_name")
    if isinstance(found, list) and found and all(isinstance(case, Mapping) for case in found):
        if entry and not fn_name and all(NAMED.match(str(case.get("input"))) for case in found):
            if not all(isinstance(case.get("output"), str) and case["output"].strip() for case in found):
                raise ValueError("a case without an output: a value as text, such as '[0, 1]'")
            name = entry.removeprefix(METHOD)
            asserts = [f"assert {name}({case['input']}) == ({case['output']})" for case in found]
            return _judged_by(_from_asserts(asserts, entry, _code(row.get("prompt"))), settings, row)
        if any(case.get("testtype") == "functional" or case.get("type") == "function_call" for case in found):
            places = [_json(row.get("metadata")), _json(found[0].get("metadata"))]
            names = [place.get("func_name") for place in places if isinstance(place, Mapping)]
            names += [found[0].get("fn_name"), entry and entry.removeprefix(METHOD)]
            fn_name = next(filter(None, [fn_name, *names]), "(none)")
        found = {"inputs": [c.get("input") for c in found], "outputs": [c.get("output") for c in found]}
    if not isinstance(found, Mapping):
        raise ValueError(f"tests are a {type(found).__name__}, not inputs and outputs")
    inputs, outputs = (found.get(name, found.get(name[:-1])) for name in ("inputs", "outputs"))
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise ValueError("tests need two lists of the same length, inputs and outputs")
    if not inputs:
        raise ValueError("tests without a case")
    fn_name = found.get("fn_name") or fn_name
    if not fn_name:
        tests = _judged_by(
            Tests(tuple(map(_stdin, inputs)), tuple(map(_stdin, outputs)), None), settings, row
        )
        if not tests.checker and not any(text.strip() for text in tests.outputs):
            raise ValueError("no output is expected: every program that prints nothing would be right")
        return tests
    single = all(
        type(i) is list and type(o) is list and len(o) == 1 for i, o in zip(inputs, outputs, strict=True)
    )
    cases = [_call(*case) for case in zip(inputs, outputs, strict=True)]
    tests = Tests(tuple(c[0] for c in cases), tuple(c[1] for c in cases), _name(fn_name), single=single)
    return _judged_by(tests, settings, row)


def _found(row: Mapping[str, Any], answer: Any) -> Any:
    """The tests of a row where they are no asserts: a list or a mapping. Raises ValueError without any."""
    reward_model = row.get("reward_model")
    sources = [answer if not isinstance(answer, str) or answer.lstrip()[:1] in ("{", "[", '"') else None]
    sources.append(reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None)
    sources += [row.get(name) for name in ("tests", "input_output", "test_cases", "public_test_cases")]
    found = next((source for source in sources if source), None)
    if row.get("private_test_cases"):
        found = _cases(row, "public_test_cases") + _cases(row, "private_test_cases")
    if not found:
        if row.get("interaction_format") or row.get("input_mode") == "file" or row.get("input_file"):
            raise ValueError(
                "the program is to talk with another, or to read a file: it has stdin and stdout alone"
            )
        parts = [_json(row.get(name)) for name in PARTS]
        parts = [part for part in parts if isinstance(part, Mapping) and isinstance(part.get("input"), list)]
        joined = {
            name: [text for part in parts for text in part.get(name) or ()] for name in ("input", "output")
        }
        found = row.get("official_tests") or (joined["input"] and joined)
    if not found:
        raise ValueError("no tests: neither in the answer nor in the row's columns")
    return _json(_json(found))  # some rows hold JSON in JSON


def _judged_by(tests: Tests, *places: Mapping[str, Any]) -> Tests:
    """The tests with the comparison and the checker that stand beside them. Raises ValueError."""
    comparison = next((place["comparison"] for place in places if place.get("comparison")), None)
    checker = next((place[name] for place in places for name in CHECKERS if place.get(name)), "")
    if checker:
        _parse(_texts(checker)[0], "the checker is no Python program")
    if comparison:
        checks = tests.checks or (Check(),) * len(tests.inputs)
        fields = _comparison(comparison)
        tests = dataclasses.replace(tests, checks=tuple(dataclasses.replace(c, **fields) for c in checks))
    return dataclasses.replace(tests, checker=checker)


def _comparison(asked: Any) -> dict[str, Any]:
    """The fields of Check for `tokens, any_order`, a list of such names, or {"tolerance": 1e-4, "tokens": true}."""
    if isinstance(asked, str):
        asked = _json(asked) if asked.lstrip()[:1] in ("[", "{") else re.split(r"[\s,]+", asked.strip())
    if isinstance(asked, list):
        asked = {str(name): True for name in asked}
    fields: dict[str, Any] = {}
    for name, value in (asked if isinstance(asked, Mapping) else {str(asked): None}).items():
        number = float(value) if isinstance(value, int | float) and value is not True else math.nan
        if name == "tolerance" and 0 <= number < math.inf:
            fields |= {"relative": number, "absolute": number, "integers": True}
        elif name in COMPARISONS and value is True:
            fields |= COMPARISONS[name]
        elif value is not False:
            known = ", ".join([*COMPARISONS, "tolerance (with a number)"])
            raise ValueError(f"comparison: {name!r} is none of {known}")
    return fields


def lacking(tests: Tests, packages: Collection[str]) -> str:
    """A reason why the tests cannot be judged where programs may import these packages alone; or nothing."""
    names = [name for name in tests.imports if name not in packages]
    if not names:
        return ""
    return f"its tests import {', '.join(names)}, which programs cannot: install it and name it in verify.code.packages"


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value or ""]
    if not all(isinstance(text, str) for text in values):
        raise ValueError("tests do not parse: they are no text")
    return values


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{name!r} is no name of a function")
    return name


def _json(source: Any) -> Any:
    """The value of a JSON text; anything else as it is."""
    try:
        return json.loads(source) if isinstance(source, str) and source else source
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {source[:40]!r}: {error}") from None


def _cases(row: Mapping[str, Any], column: str) -> list[Any]:
    """LiveCodeBench's cases in a column: a list, or JSON, or JSON in a packed pickle."""
    found = row.get(column) or []
    try:
        if isinstance(found, str) and found.lstrip()[:1] not in ("[", "{", '"'):
            found = _unpack(found)
        found = _json(_json(found))
    except ValueError as error:
        raise ValueError(f"{column}: no JSON, nor base64 of zlib of a pickle of it: {error}") from None
    if not isinstance(found, list):
        raise ValueError(f"{column}: a {type(found).__name__}, no list of cases")
    return found


class _Unpickler(pickle.Unpickler):
    """Finds no class and no function: a pickle could run any of them."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise ValueError(f"it asks for {module_name}.{global_name}")


def _unpack(text: str) -> str:
    """The text in base64 of zlib of its pickle. Raises ValueError; runs and allocates nothing that it asks for."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(base64.b64decode(text, validate=True), UNPACKED + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(data) > UNPACKED or not stream.eof:
        raise ValueError(f"more than {UNPACKED} bytes" if len(data) > UNPACKED else "it is cut off")
    for count, (opcode, place, _) in enumerate(pickletools.genops(data), 1):
        far = opcode.name in ("PUT", "LONG_BINPUT") and (place or 0) > OPCODES  # five bytes ask for 32 GiB
        if far or count > OPCODES:
            raise ValueError("a pickle of more than a text")
    try:
        found = _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # "any other", says its documentation
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(found, str):
        raise ValueError(f"a pickled {type(found).__name__}")
    return found


def _stdin(text: Any) -> str:
    if isinstance(text, list):
        text = "\n".join(line.removesuffix("\n") if isinstance(line, str) else str(line) for line in text)
    if not isinstance(text, str) or not is_text(text):
        raise ValueError(f"not a text or a list of lines for stdin or stdout: {str(text)[:40]!r}")
    return text


def _call(arguments: Any, expected: Any) -> tuple[list[Any], Any]:
    """One case of a function: a list of arguments as in APPS, or JSON by line as in LeetCode's sets."""
    if isinstance(arguments, str):
        arguments = [_json(line) for line in arguments.split("\n") if line.strip()]
        expected = _json(expected)
    elif not isinstance(arguments, list):
        raise ValueError(f"arguments are no list: {str(arguments)[:40]!r}")
    elif len(arguments) == 1 and isinstance(arguments[0], dict):  # APPS undoes what JSON did to its keys
        keys = [int_key(key) for key in arguments[0]]
        if all(isinstance(key, int) for key in keys):
            arguments = [dict(zip(keys, arguments[0].values(), strict=True))]
    measure([arguments, expected], math.inf)
    return arguments, expected


def is_text(text: str) -> bool:
    """True for a text that can be encoded."""
    return SURROGATE.search(text) is None


def measure(value: Any, most: float = LARGEST, depth: int = 0) -> float:
    """Items and characters in a plain value. Raises ValueError for one too large, too deep or not plain."""
    if type(value) not in PLAIN or depth > DEEPEST:
        raise ValueError(f"too deep, or no plain value: {type(value).__name__}")
    size = 1.0
    if isinstance(value, str | bytes):
        size += len(value)
        if isinstance(value, str) and not is_text(value):
            raise ValueError("text with lone surrogates")
    elif isinstance(value, int):
        size += value.bit_length() / 4
    elif isinstance(value, list | tuple | set | frozenset | dict):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            size += measure(item, most - size, depth + 1)
    if size > most:
        raise ValueError("too large a constant")
    return size


# Asserts to data


def _from_asserts(sources: Iterable[str], entry: str | None, prompt: str) -> Tests:
    """The asserts of HumanEval's or LeetCode's `check` or of MBPP's list as cases.

    Asserts that do not convert are left out, unless they are the most: a right program passes the
    others too, and a wrong one seldom does. Raises ValueError where too few convert.
    """
    sources = list(sources)
    body = [node for source in sources for node in _parse(source)]
    objects = _objects(body)
    entry = entry or _checked(body, objects)
    method = entry is not None and entry.startswith(METHOD)
    entry = _name(entry.removeprefix(METHOD)) if entry else None
    names = {entry} if entry else _function_under_test(body, objects)
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == "check" and node.args.args:
            names = {*names, node.args.args[0].arg}
            body = [other for other in body if isinstance(other, ast.Assign)] + node.body
            break
    cases: list[tuple[list[Any], dict[str, Any], Any, Check]] = []
    refused: list[str] = []
    values: dict[str, Any] = {}
    for node in body:
        try:
            match node:
                case ast.Assert(test=test):
                    if names & _called(test, objects):  # else it says nothing of the program
                        cases.append(_case(test, names, objects, values))
                        method = method or any(METHOD + name in _calls(test, objects) for name in names)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    values.pop(name, None)
                    values[name] = _constant(value, values)
                case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(ast.Constant() | ast.Name()):
                    pass
                case ast.Expr(ast.Call(ast.Name("check"), [_], [])):
                    pass
                case _:
                    values.clear()  # who knows what it changes
                    if any(isinstance(inner, ast.Assert) for inner in ast.walk(node)):
                        raise ValueError(f"asserts inside a {type(node).__name__}")
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            if not isinstance(node, ast.Assign):
                refused.append(str(error))
    if not cases or len(cases) < len(refused):
        reason = refused[0] if refused else "no assert calls the function"
        raise ValueError(f"{len(refused)} of {len(cases) + len(refused)} tests do not convert: {reason}")
    inputs, keywords, outputs, checks = zip(*cases, strict=True)
    keywords = keywords if method or any(keywords) else ()
    imports = _imports([prompt, *sources])
    return Tests(
        inputs, outputs, entry or min(names), keywords, prompt, exact=True, checks=checks, imports=imports
    )


def _parse(source: str, fault: str = "tests do not parse") -> list[ast.stmt]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{fault}: {error}") from None


def _code(prompt: Any) -> str:
    """A prompt that is code to put before the program: it imports or defines, and runs nothing. Else ""."""
    try:
        body = _parse(prompt) if isinstance(prompt, str) else []
    except ValueError:  # a question in words
        return ""
    kinds = {type(node.value if isinstance(node, ast.Expr) else node) for node in body}
    code = kinds & DEFINITIONS and kinds <= DEFINITIONS | {ast.Assign, ast.AnnAssign, ast.Constant}
    return prompt if code else ""


def _imports(sources: Iterable[str]) -> tuple[str, ...]:
    """Packages outside the standard library that sources import."""
    names: dict[str, None] = {}
    for node in (inner for source in sources for top in _parse(source) for inner in ast.walk(top)):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names[node.module.partition(".")[0]] = None
    return tuple(name for name in names if name not in sys.stdlib_module_names)


def _objects(body: Iterable[ast.stmt]) -> set[str]:
    """Names that an instance of class Solution is given."""
    found: set[str] = set()
    for node in (inner for top in body for inner in ast.walk(top)):
        match node:
            case ast.Assign([ast.Name(name)], ast.Call(ast.Name("Solution"), [], [])):
                found.add(name)
    return found


def _function(node: ast.expr, objects: Collection[str]) -> str:
    """The name of a function, or of a method of class Solution behind METHOD; else ""."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(ast.Call(ast.Name("Solution"), [], []), name):
            return METHOD + name
        case ast.Attribute(ast.Name(owner), name) if owner in objects:
            return METHOD + name
    return ""


def _checked(body: Iterable[ast.stmt], objects: Collection[str]) -> str | None:
    """The function that `check(function)` is called with."""
    for node in body:
        match node:
            case ast.Expr(ast.Call(ast.Name("check"), [argument], [])):
                return _function(argument, objects) or None
    return None


def _calls(node: ast.AST, objects: Collection[str]) -> list[str]:
    return [_function(inner.func, objects) for inner in ast.walk(node) if isinstance(inner, ast.Call)]


def _called(node: ast.AST, objects: Collection[str]) -> set[str]:
    return {name.removeprefix(METHOD) for name in _calls(node, objects) if name}


def _function_under_test(body: Iterable[ast.stmt], objects: Collection[str]) -> set[str]:
    """The one function, none of ours, that all asserts with a call have."""
    ours = {*FUNCTIONS, "isclose", "Solution"}
    called = [_called(node, objects) - ours for node in body if isinstance(node, ast.Assert)]
    called = [names for names in called if names]
    names = set.intersection(*called) if called else set()
    if len(names) != 1:
        raise ValueError(f"cannot tell the function under test: {sorted(names) or 'none in all asserts'}")
    return names


def _case(
    test: ast.expr, names: set[str], objects: Collection[str], values: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any], Any, Check]:
    """Arguments, those by name, expected value and check of one assert. Raises ValueError where it does not convert."""
    right = check = None
    kind, expected = "equal", None
    match test:
        case ast.Compare(
            ast.Call(
                ast.Name("abs") | ast.Attribute(ast.Name("math"), "fabs"),
                [ast.BinOp(left, ast.Sub(), right)],
                [],
            ),
            [ast.Lt() | ast.LtE()],
            [bound],
        ):
            check = Check(relative=0.0, absolute=float(_constant(bound, values)))
        case ast.Call(
            ast.Name("isclose") | ast.Attribute(ast.Name("math"), "isclose"), [left, right], keywords
        ) if not names & {"isclose"}:
            given = {keyword.arg: float(_constant(keyword.value, values)) for keyword in keywords}
            check = Check(relative=given.get("rel_tol", 1e-9), absolute=given.get("abs_tol", 0.0))
        case ast.Compare(left, [op], [right]) if type(op) in KINDS:
            kind = KINDS[type(op)]
        case ast.UnaryOp(ast.Not(), left):
            kind, expected = "truth", False
        case _:
            left, kind, expected = test, "truth", True
    if right is not None:
        if not names & _called(left, objects):
            left, right = right, left
        expected = _constant(right, values)
        if check:
            expected = float(expected)  # else an int would be compared exactly
    wrappers: list[tuple[str, tuple[Any, ...]]] = []
    while True:
        match left:
            case ast.Call(function, arguments, words) if (
                _function(function, objects).removeprefix(METHOD) in names
            ):
                inputs, named = _arguments(arguments, words, values)
                check = dataclasses.replace(check or Check(kind), wrappers=tuple(reversed(wrappers)))
                return inputs, named, expected, check
            case ast.Call(ast.Name(name), [inner, *further], []) if name in FUNCTIONS:
                wrappers.append((name, tuple(_constant(node, values) for node in further)))
                left = inner
            case _:
                raise ValueError(f"no comparison of the function's value: {ast.unparse(left)[:60]}")


def _arguments(
    arguments: list[ast.expr], words: list[ast.keyword], values: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The values of a call's arguments and of those by name, with what stands behind one star and two."""
    inputs: list[Any] = []
    for node in arguments:
        inputs += (
            _constant(node.value, values) if isinstance(node, ast.Starred) else [_constant(node, values)]
        )
    named: dict[str, Any] = {}
    for word in words:
        value = _constant(word.value, values)
        more = {word.arg: value} if word.arg else dict(value)
        if named.keys() & more.keys() or not all(isinstance(name, str) for name in more):
            raise ValueError(f"an argument twice, or no name: {list(more)}"[:60])
        named |= more
    return inputs, named


def _constant(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """The value of an expression of constants, bounded in size. Raises ValueError for any other."""

    def evaluate(node: ast.expr | None) -> Any:
        match node:
            case ast.Constant(value):
                return value
            case ast.Name(name) if name in values:
                return values[name]
            case ast.Attribute(ast.Name("math"), name) if name in CONSTANTS:
                return CONSTANTS[name]
            case ast.List(items):
                return [evaluate(item) for item in items]
            case ast.Tuple(items):
                return tuple(evaluate(item) for item in items)
            case ast.Set(items):
                return {evaluate(item) for item in items}
            case ast.Dict(keys, items):
                return {evaluate(key): evaluate(item) for key, item in zip(keys, items, strict=True)}
            case ast.UnaryOp(op, operand) if type(op) in OPERATORS:
                return OPERATORS[type(op)](evaluate(operand))
            case ast.BinOp(left, op, right) if type(op) in OPERATORS:
                one, other = evaluate(left), evaluate(right)
                _bound(op, one, other)
                return OPERATORS[type(op)](one, other)
            case ast.Call(ast.Name(name), arguments, []) if name in FUNCTIONS:
                return FUNCTIONS[name](*(evaluate(argument) for argument in arguments))
        raise ValueError(f"no constant: {ast.unparse(node)[:60] if node else '**'}")

    value = evaluate(node)
    measure(value)
    return value


def _bound(op: ast.operator, one: Any, other: Any) -> None:
    """Raises ValueError where an operation's result could be large."""
    sizes = measure(one), measure(other)
    if isinstance(op, ast.Mod) and isinstance(one, str | bytes):
        raise ValueError("no constant: formatting")
    if isinstance(op, ast.Pow) and isinstance(one, int) and isinstance(other, int):
        size = one.bit_length() * abs(other)
    elif isinstance(op, ast.Mult) and not (isinstance(one, NUMBERS) and isinstance(other, NUMBERS)):
        count, size = (one, sizes[1]) if isinstance(one, int) else (other, sizes[0])
        size *= count if isinstance(count, int) else 0
    else:
        size = sum(sizes)
    if size > LARGEST:
        raise ValueError("too large a constant")
