"""A user's reward functions, and the choice of a verifier by name."""

import sys

import pytest

from openprime.types import Prompt, UserError, Verdict
from openprime.verifiers.user import load_user_verifier
from openprime.verifiers.worker import make_verifier

TEXT = Prompt("d:0", (), "1+1?", "2", {"prompt": "1+1?", "answer": "2", "level": 3, "completion": "two"})
CHAT = Prompt("d:1", (), [{"role": "user", "content": "1+1?"}], None, {"prompt": [{"role": "user"}]})
RIGHT, WRONG = Verdict(1.0, "right"), Verdict(0.0, "wrong")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the current directory; nothing of it stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(source, name="my_reward"):
        (tmp_path / f"{name}.py").write_text(source)
        return f"{name}:score"

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in repr(sys.modules[name]):  # numpy cannot be loaded twice
            del sys.modules[name]


def returning(value):
    return (
        f"from numpy import float32, array\ndef score(prompts, completions, **columns):\n    return {value}\n"
    )


def test_load_user_verifier__calls_the_function_as_trl_does(module):
    source = (
        "calls = []\ndef score(prompts, completions, **columns):\n"
        "    calls.append((prompts, completions, columns))\n    return [1.0] * len(prompts)\n"
    )
    verify = load_user_verifier(module(source))
    verify(TEXT, ["a", "b"])
    verify(CHAT, ["c"])
    assert sys.modules["my_reward"].calls == [
        (["1+1?"] * 2, ["a", "b"], {"answer": ["2"] * 2, "level": [3] * 2}),
        ([CHAT.messages], [[{"role": "assistant", "content": "c"}]], {}),
    ]


def test_load_user_verifier__a_function_may_name_the_columns_it_wants(module):
    source = (
        "def score(completions, answer, **rest):\n"
        "    return [float(a == c) for a, c in zip(answer, completions)]\n"
    )
    assert [v.outcome for v in load_user_verifier(module(source))(TEXT, ["2", "3"])] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("value", "verdicts"),
    [
        ("[1.0, 0.0]", [RIGHT, WRONG]),
        ("[1, 0]", [RIGHT, WRONG]),
        ("[True, False]", [RIGHT, WRONG]),
        ("[0.25, None]", [Verdict(0.25, "partial"), Verdict(None, "no_verdict")]),
        ("(0.0, 0.999)", [WRONG, Verdict(0.999, "partial")]),
        ("[float32(1), float32(0.5)]", [RIGHT, Verdict(0.5, "partial")]),
        ("array([0.5, 0.0])", [Verdict(0.5, "partial"), WRONG]),
        ("(float(c == 'a') for c in completions)", [RIGHT, WRONG]),
    ],
)
def test_load_user_verifier__numbers_become_outcomes(module, value, verdicts):
    found = load_user_verifier(module(returning(value)))(TEXT, ["a", "b"])
    assert found == verdicts
    assert all(type(v.outcome) in (float, type(None)) for v in found)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[1.5, 0]", r"1\.5.*\[0, 1\]"), ("[0, -0.1]", r"-0\.1.*\[0, 1\]"),
        ("[float('nan'), 0]", r"nan.*\[0, 1\]"), ("[float('inf'), 0]", r"inf.*\[0, 1\]"),
        ("['1', 0]", r"'1'.*\[0, 1\]"), ("[[1], 0]", r"\[1\].*\[0, 1\]"), ("[1j, 0]", r"1j.*\[0, 1\]"),
        ("[1.0]", r"1 outcomes \[1\.0\] for 2 completions"), ("[1.0] * 3", "3 outcomes .* for 2 completions"),
        ("None", r"None; expected a list of outcomes in \[0, 1\]"), ("1.0", r"1\.0; expected a list"),
        ("'ab'", "'ab'; expected a list"), ("{'a': 1, 'b': 0}", "expected a list"),
    ],
)  # fmt: skip
def test_load_user_verifier__other_results_are_refused_by_name_and_value(module, value, message):
    verify = load_user_verifier(module(returning(value)))
    with pytest.raises(UserError, match=f"my_reward:score, prompt d:0: returned .*{message}"):
        verify(TEXT, ["a", "b"])


def test_load_user_verifier__an_error_goes_through_with_a_note(module):
    verify = load_user_verifier(module("def score(**columns):\n    raise KeyError('gone')\n"))
    with pytest.raises(KeyError, match="gone") as caught:
        verify(TEXT, ["a"])
    assert caught.value.__notes__ == ["raised by the verifier my_reward:score on prompt d:0"]


def test_load_user_verifier__finds_modules_in_packages_and_installed_ones(module, tmp_path):
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "mine.py").write_text(returning("[0.5]"))
    assert load_user_verifier("rewards.mine:score")(TEXT, ["a"]) == [Verdict(0.5, "partial")]
    assert callable(load_user_verifier("json:dumps"))


def test_load_user_verifier__a_file_here_does_not_hide_a_library(module):
    module("raise RuntimeError('hidden')", "colorsys")
    load_user_verifier(module(returning("[1.0]")))
    sys.modules.pop("colorsys", None)
    import colorsys

    assert colorsys.rgb_to_hls(0, 0, 0) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "no verifier 'maths'; valid are math, code, reasoning_gym, and module:function"),
        ("", "valid are math, code, reasoning_gym, and module:function"),
        ("gone_module:score", "no module gone_module, neither in .* nor among the installed"),
        ("gone_package.inner:score", "no module gone_package, neither"),
        ("json.gone:score", r"no module json\.gone, neither"),
        ("my_reward:gone", r"my_reward\.py has no function gone"),
        ("my_reward:NUMBER", r"my_reward\.py has no function NUMBER"),
        ("my_reward.py:score", r"no module my_reward\.py|not of the form"),
        ("./my_reward:score", "not of the form module:function"),
        ("my_reward:", "not of the form module:function"),
        (":score", "not of the form module:function"),
        ("a:b:c", "not of the form module:function"),
    ],
)
def test_make_verifier__bad_names_are_refused_before_any_work(module, name, message):
    module("NUMBER = 1\ndef score(**columns): ...\n")
    with pytest.raises(UserError, match=message):
        make_verifier(name, {})


def test_load_user_verifier__a_fault_inside_the_module_is_no_missing_module(module):
    with pytest.raises(ModuleNotFoundError, match="gone_library") as caught:
        load_user_verifier(module("import gone_library\ndef score(): ...\n"))
    assert caught.value.__notes__ == ["while importing the verifier my_reward:score"]


def test_load_user_verifier__a_class_is_made_once_and_returns_verdicts(module):
    source = (
        "from openprime.types import Verdict\n"
        "class score:\n"
        "    def __init__(self):\n        self.asked = 0\n"
        "    def __call__(self, prompt, responses):\n        self.asked += 1\n"
        "        return [Verdict(0.5, f'{prompt.answer} {text} {self.asked}') for text in responses]\n"
    )
    verify = load_user_verifier(module(source))
    assert verify(TEXT, ["a", "b"]) == [Verdict(0.5, "2 a 1"), Verdict(0.5, "2 b 1")]
    assert verify(TEXT, ["c"]) == [Verdict(0.5, "2 c 2")]
