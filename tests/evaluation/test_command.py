"""`openprime evaluate`: what the results say of the responses, how a model is asked, going on, bad input."""

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from openprime.cli import main
from openprime.evaluation.accuracy import step_auc
from openprime.evaluation.voting import bootstrap_interval
from openprime.models.hub import load_tokenizer
from openprime.models.lm import LM
from openprime.models.tiny import build_model, build_tokenizer
from openprime.prime.prm import ImplicitPRM
from openprime.run import jsonl
from openprime.tasks.clock import check_steps
from openprime.verifiers.math import canonical_answer
from support import brute
from support.tiny_prm import greedy_tokens, save_prm, token_logprobs, token_rewards
from support.tiny_runs import records

NAME = "clock-2"
N = 6


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A benchmark of ones own, of the kind that the small model knows."""
    path = tmp_path_factory.mktemp("entry") / f"{NAME}.yaml"
    path.write_text('data: {source: "task:clock", limit: 12, horizon: 2}\nmax_response_tokens: 16\n')
    return str(path)


@pytest.fixture(scope="module")
def prm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PRM."""
    return save_prm(model, tmp_path_factory.mktemp("prm") / "prm")


def args(model: Path, entry: str, out: Path, *flags: str) -> list[str]:
    """Arguments of an evaluation; later flags win."""
    return ["evaluate", str(model), "--benchmark", entry, "--samples", str(N), "--out", str(out), *flags]


def evaluate(model: Path, entry: str, out: Path, *flags: str) -> Path:
    """An evaluation that must succeed."""
    assert main(args(model, entry, out, *flags)) == 0
    return out


def read(folder: Path, name: str = NAME) -> tuple[dict, list[dict]]:
    """Results and responses; JSON knows no NaN."""
    results = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    return results["benchmarks"][name], records(folder / name / "responses.jsonl")


@pytest.fixture(scope="module")
def with_prm(model: Path, prm: Path, entry: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with a PRM."""
    return evaluate(model, entry, tmp_path_factory.mktemp("with") / "out", "--prm", str(prm))


@pytest.fixture(scope="module")
def without(model: Path, entry: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without."""
    return evaluate(model, entry, tmp_path_factory.mktemp("without") / "out")


WAYS = {
    "PRM": lambda r: r["reward"],
    "PRM, mean of tokens": lambda r: sum(r["rewards"]) / len(r["rewards"]),
    "PRM, lowest token": lambda r: sorted(r["rewards"])[0],
    "PRM, last token": lambda r: r["rewards"][len(r["rewards"]) - 1],
    "PRM, mean of steps": lambda r: sum(r["step_rewards"]) / len(r["step_rewards"]),
    "PRM, lowest step": lambda r: sorted(r["step_rewards"])[0],
    "PRM, last step": lambda r: r["step_rewards"][len(r["step_rewards"]) - 1],
    "reference log-probability": lambda r: r["reference_logprob"],
}


def test_evaluate__results_follow_from_the_responses(with_prm: Path):
    """All numbers, by loops over all choices of k from the responses that were written."""
    results, rows = read(with_prm)
    assert (results["items"], results["samples"], results["left_out"]) == (12, N, 0)
    assert len(rows) == 12
    assert all(len(row["responses"]) == N for row in rows)
    right = [[r["outcome"] for r in row["responses"]] for row in rows]
    assert 0 < np.mean(right) < 1
    assert results[f"avg@{N}"][0] == pytest.approx(np.mean(right))
    assert results["greedy"][0] == pytest.approx(np.mean([row["greedy"]["outcome"] for row in rows]))
    for k, value in results["pass@k"].items():
        shares = [brute.pass_at_k(N, int(sum(outcomes)), int(k)) for outcomes in right]
        assert value[0] == pytest.approx(np.mean(shares))
    answers = [[canonical_answer(r["text"]) for r in row["responses"]] for row in rows]
    scores = {name: [[way(r) for r in row["responses"]] for row in rows] for name, way in WAYS.items()}
    for n in (1, 2, 4, 6):
        expected = brute.best_of(right, answers, scores, n)
        assert set(results["best_of_n"]) == set(expected)
        for method, value in expected.items():
            mean, low, high = results["best_of_n"][method][str(n)]
            assert mean == pytest.approx(value), (method, n)
            assert low - 1e-9 <= mean <= high + 1e-9
    assert results["maj@k"] == results["best_of_n"]["majority vote"]
    for table in (results["pass@k"], *results["best_of_n"].values()):
        assert list(table) == ["1", "2", "4", "6"]
    ends = {name: row["6"][0] for name, row in results["best_of_n"].items()}
    assert set(results["prm_ahead"]) == {"majority vote", "reference log-probability"}
    for name, (mean, low, high) in results["prm_ahead"].items():
        each = [
            brute.best_of([o], [a], {k: [v[i]] for k, v in scores.items()}, 6)
            for i, (o, a) in enumerate(zip(right, answers, strict=True))
        ]
        differences = [row["PRM"] - row[name] for row in each]
        assert mean == pytest.approx(np.mean(differences)) == pytest.approx(ends["PRM"] - ends[name])
        assert (low, high) == pytest.approx(bootstrap_interval(differences))
    assert len(set(ends.values())) > 3, "the ways differ, or the test would say little"
    every = [r for row in rows for r in (*row["responses"], row["greedy"])]
    assert results["reasons"] == dict(Counter(r["reason"] for r in every).most_common())
    assert results["truncated"] == pytest.approx(np.mean([r["truncated"] for r in every]))
    assert results["response_tokens"] == pytest.approx(np.mean([len(r["token_ids"]) for r in every]))


def test_evaluate__outcomes_follow_from_the_texts(with_prm: Path, model: Path):
    _, rows = read(with_prm)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for row in rows:
        for r in (*row["responses"], row["greedy"]):
            last = r["text"].strip().splitlines()[-1:]
            assert r["outcome"] == float(last == [f"#### {row['answer']}"])
            assert r["reason"] in ("right", "wrong", "no_answer")
            assert r["truncated"] == (r["token_ids"][-1] != tokenizer.eos_token_id)
            assert tokenizer.decode(r["token_ids"], skip_special_tokens=True) == r["text"]
        for r in row["responses"]:
            assert "".join(r["tokens"]) == r["text"]
            assert len(r["tokens"]) == len(r["rewards"]) == len(r["token_ids"]) <= 16
            lines = [line for line in r["text"].split("\n") if line.strip()]
            assert len(r["step_rewards"]) == max(1, len(lines))
            assert sum(r["step_rewards"]) == pytest.approx(r["reward"], abs=1e-4)


def test_evaluate__lines_have_verdicts_of_the_oracle(with_prm: Path):
    results, rows = read(with_prm)
    for row in rows:
        for r in row["responses"]:
            assert r["steps"] == check_steps(row["prompt"][0]["content"], r["text"])
    assert {verdict for row in rows for r in row["responses"] for verdict in r["steps"]} == {True, False}
    assert results["step_auc"] == pytest.approx(step_auc(rows))


def test_evaluate__rewards_are_the_log_ratio_of_prm_and_reference(with_prm: Path, prm: Path, model: Path):
    """Whole sequences of the very tokens that were sampled, through transformers' own forward pass."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    for row in read(with_prm)[1][:4]:
        start = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        for r in row["responses"]:
            rewards = token_rewards(prm, model, start, r["token_ids"])
            assert r["rewards"] == pytest.approx(rewards, abs=3e-5)
            assert r["reward"] == pytest.approx(sum(rewards), abs=1e-3)
            reference = sum(token_logprobs(model, start, r["token_ids"]))
            assert r["reference_logprob"] == pytest.approx(reference, abs=1e-3)


def test_evaluate__without_a_prm_there_are_no_rewards(without: Path, with_prm: Path):
    (results, rows), (other, theirs) = read(without), read(with_prm)
    assert set(results["best_of_n"]) == {"random", "majority vote", "oracle"}
    assert "step_auc" not in results
    for row, their in zip(rows, theirs, strict=True):
        assert [r["token_ids"] for r in row["responses"]] == [r["token_ids"] for r in their["responses"]]
        assert not any("rewards" in r or "tokens" in r for r in row["responses"])
    for key in ("greedy", "avg@6", "pass@k", "maj@k", "reasons", "truncated"):
        assert results[key] == other[key]


def test_evaluate__batch_sizes_change_nothing(
    model: Path, prm: Path, entry: str, with_prm: Path, tmp_path: Path
):
    few = ("--sequences", "7", "--tokens-per-microbatch", "50", "--prm", str(prm))
    (results, rows), (other, theirs) = read(evaluate(model, entry, tmp_path / "o", *few)), read(with_prm)
    for row, their in zip(rows, theirs, strict=True):
        assert row["greedy"] == their["greedy"]
        for r, t in zip(row["responses"], their["responses"], strict=True):
            assert r["token_ids"] == t["token_ids"]
            assert r["rewards"] == pytest.approx(t["rewards"], abs=2e-5)
    assert results["greedy"] == other["greedy"]
    assert results["avg@6"] == other["avg@6"]


def test_evaluate__greedy_alone(
    model: Path, entry: str, prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = evaluate(model, entry, tmp_path / "o", "--samples", "0", "--limit", "3", "--prm", str(prm))
    results, rows = read(out)
    assert len(rows) == results["items"] == 3
    assert all(row["responses"] == [] and row["greedy"]["text"] for row in rows)
    assert not any("@" in key or key == "best_of_n" for key in results)
    said = " ".join(capsys.readouterr().out.split())
    assert "note: no effect of prm without --samples: it chooses among N sampled responses" in said
    assert f"{results['greedy'][0]:.3f}" in said


def test_evaluate__one_short_sample_is_an_average_without_a_choice(model: Path, entry: str, tmp_path: Path):
    short = ("--samples", "1", "--max-response-tokens", "5")
    results, rows = read(evaluate(model, entry, tmp_path / "o", *short))
    assert max(len(row["responses"][0]["token_ids"]) for row in rows) == 5
    assert results["avg@1"][0] == pytest.approx(np.mean([row["responses"][0]["outcome"] for row in rows]))
    assert not {"best_of_n", "pass@k"} & set(results)


def test_print_results__takes_80_columns(
    model: Path, entry: str, prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """With the longest name that comes with the package."""
    long = Path(shutil.copy(entry, tmp_path / "processbench-olympiadbench-[x].yaml"))
    out = evaluate(model, str(long), tmp_path / "o", "--prm", str(prm), "--samples", "16")
    results, _ = read(out, long.stem)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    table = said.split("95 % intervals")[1].split(f"\n{long.stem}: accuracy")[0]
    assert "[x]" in table
    for values in (results["greedy"], results["avg@16"], results["best_of_n"]["PRM"]["16"]):
        assert f"{values[0]:.3f}" in said
        assert f"{values[1]:.2f}-{values[2]:.2f}" in said
    written = (out / "results.html").read_text()
    assert "[x]" in written
    for text in (" ".join(said.split()), written):
        assert "PRM ahead, item by item, at N=16: " in text
        for name, (mean, low, high) in results["prm_ahead"].items():
            assert f"{mean:+.3f} ({low:+.2f} to {high:+.2f}) of the {name}" in text


def test_evaluate__several_benchmarks_at_once(model: Path, entry: str, without: Path, tmp_path: Path):
    """Each as it would be alone: it has a seed of its own."""
    other = Path(shutil.copy(entry, tmp_path / "again.yaml"))
    out = evaluate(model, entry, tmp_path / "o", "--benchmark", str(other), entry)
    assert read(out)[1] == read(without)[1]
    first, second = (read(out, name)[1] for name in ("again", NAME))
    assert [row["prompt"] for row in first] == [row["prompt"] for row in second]
    assert [row["responses"] for row in first] != [row["responses"] for row in second]
    assert list(json.loads((out / "results.json").read_text())["benchmarks"]) == ["again", NAME]


def test_evaluate__equal_items_are_each_asked(model: Path, tmp_path: Path):
    (tmp_path / "d.jsonl").write_text('{"question": "Start one\\n+two = ?", "answer": "3"}\n' * 3)
    (tmp_path / "twice.yaml").write_text(
        "data: {source: %s}\nmax_response_tokens: 16" % (tmp_path / "d.jsonl")
    )
    results, rows = read(evaluate(model, str(tmp_path / "twice.yaml"), tmp_path / "o"), "twice")
    assert results["items"] == 3
    assert [row["id"] for row in rows] == ["d.jsonl:0", "d.jsonl:1", "d.jsonl:2"]
    assert len({str(row["responses"]) for row in rows}) == 3  # with random numbers of its own


GRADED = """
def score(prompts, completions, **columns):
    return [None if len(text) % 4 == 0 else (len(text) % 4) / 3 for text in (c for c in completions)]
"""


def test_evaluate__graded_outcomes_of_ones_own(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Means are of the outcomes, pass@k is of the full ones, no verdict is 0."""
    (tmp_path / "graded.py").write_text(GRADED)
    (tmp_path / "mine.yaml").write_text(
        'data: {source: "task:clock", limit: 8, horizon: 2, verifier: "graded:score"}\nmax_response_tokens: 16'
    )
    monkeypatch.chdir(tmp_path)
    results, rows = read(evaluate(model, "mine.yaml", tmp_path / "o"), "mine")
    every = [[r["outcome"] for r in row["responses"]] for row in rows]
    assert {value for row in every for value in row} == {None, 1 / 3, 2 / 3, 1.0}
    right = [[value or 0.0 for value in row] for row in every]
    assert results["avg@6"][0] == pytest.approx(np.mean(right))
    shares = [np.mean([1.0 in chosen for chosen in itertools.combinations(row, 2)]) for row in right]
    assert results["pass@k"]["2"][0] == pytest.approx(np.mean(shares))
    shares = [np.mean([max(chosen) for chosen in itertools.combinations(row, 4)]) for row in right]
    assert results["best_of_n"]["oracle"]["4"][0] == pytest.approx(np.mean(shares))


# How a model is asked


def test_evaluate__model_is_asked_as_it_was_trained(model: Path, tmp_path: Path):
    """prompt_format.json, which its run wrote, before the benchmark's template, and --template before both."""
    (tmp_path / "d.jsonl").write_text('{"question": "Start one\\n+two = ?", "answer": "3"}\n')
    changed = Path(shutil.copytree(model, tmp_path / "changed"))
    form = json.loads((changed / "prompt_format.json").read_text())
    assert form == {"system": "", "suffix": "", "template": "none", "chat_template": "auto"}
    (changed / "prompt_format.json").write_text(json.dumps(form | {"suffix": "\nGo.", "system": "Count."}))
    other = Path(shutil.copytree(changed, tmp_path / "other"))
    (other / "prompt_format.json").unlink()
    box = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
    asked = {
        (model, "auto"): ["Start one\n+two = ?"],
        (changed, "auto"): ["Count.", "Start one\n+two = ?\nGo."],
        (changed, "eurus"): ["Start one\n+two = ?" + box],
        (changed, "none"): ["Start one\n+two = ?"],
        (other, "auto"): ["Start one\n+two = ?" + box],
    }
    for i, ((folder, template), expected) in enumerate(asked.items()):
        flags = ("--data", str(tmp_path / "d.jsonl"), "--samples", "1", "--max-response-tokens", "2")
        out = evaluate(folder, "gsm8k", tmp_path / f"{i}", *flags, "--template", template)
        (row,) = read(out, "gsm8k")[1]
        assert [message["content"] for message in row["prompt"]] == expected


def test_evaluate__model_without_a_chat_template(model: Path, entry: str, prm: Path, tmp_path: Path):
    """It reads the question as it is, and the PRM scores the tokens that came out."""
    plain = Path(shutil.copytree(model, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    out = evaluate(plain, entry, tmp_path / "o", "--prm", str(prm), "--limit", "3")
    tokenizer = AutoTokenizer.from_pretrained(model)
    for row in read(out)[1]:
        start = tokenizer(row["prompt"][0]["content"])["input_ids"]
        assert row["greedy"]["token_ids"] == greedy_tokens(model, start, 16)
        for r in row["responses"]:
            assert r["rewards"] == pytest.approx(token_rewards(prm, model, start, r["token_ids"]), abs=3e-5)


# PRMs


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PRM with a vocabulary of its own, and its reference."""
    folder = tmp_path_factory.mktemp("foreign")
    tokenizer = build_tokenizer(["one plus two is three and four is more"] * 9, 290)
    phi, reference = (LM(build_model(tokenizer, 16, 1, 2, 256, seed)) for seed in range(2))
    reference.save(folder / "reference", tokenizer)
    ImplicitPRM(phi, None, 0.5).save_pretrained(folder / "prm", tokenizer, str(folder / "reference"))
    return folder / "prm"


def test_evaluate__prm_with_another_vocabulary_scores_the_texts(
    model: Path, entry: str, foreign: Path, without: Path, tmp_path: Path
):
    results, rows = read(evaluate(model, entry, tmp_path / "o", "--prm", str(foreign)))
    prm = ImplicitPRM.from_pretrained(str(foreign), device="cpu")
    assert load_tokenizer(str(foreign)).get_vocab() != load_tokenizer(str(model)).get_vocab()
    for row, same in zip(rows, read(without)[1], strict=True):
        for r, other in zip(row["responses"], same["responses"], strict=True):
            assert r["text"] == other["text"]
            (score,) = prm.score([row["prompt"]], [r["text"]])
            assert r["tokens"] == score.tokens
            assert r["rewards"] == pytest.approx(score.token_rewards, abs=3e-5)
            assert r["reward"] == pytest.approx(score.reward, abs=1e-4)
    assert "PRM, last step" in results["best_of_n"]


def test_evaluate__prm_and_reference_that_do_not_fit_are_refused(
    model: Path, entry: str, prm: Path, foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    alone, broken = (shutil.copytree(folder, tmp_path / folder.parent.name) for folder in (prm, foreign))
    (alone / "implicit_prm.json").write_text('{"beta": 0.2, "reference": ""}')
    (broken / "implicit_prm.json").write_text(json.dumps({"beta": 0.5, "reference": str(model)}))
    vocabularies = ("the vocabulary of", str(model), "use models with the same tokenizer")
    for flags, words in (
        (("--prm", str(foreign), "--reference", str(model)), vocabularies),
        (("--prm", str(broken)), vocabularies),
        (("--prm", str(alone)), ("saved without a reference", "--reference")),
        (("--prm", str(model)), ("not an implicit PRM", "--reference")),
    ):
        assert main(args(model, entry, tmp_path / "o", *flags)) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in words), said
        assert not (tmp_path / "o").exists()
    few = ("--limit", "1", "--reference", str(model))
    evaluate(model, entry, tmp_path / "o", "--prm", str(alone), *few)
    evaluate(model, entry, tmp_path / "p", *few)
    assert "note: no effect of reference without prm" in capsys.readouterr().out


# Going on


FILES = (f"{NAME}/responses.jsonl", "results.json", "benchmarks.yaml", "results.html")


def test_resume__wherever_it_died_the_same_comes_out(
    model: Path, prm: Path, entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From what a kill leaves: within a chunk of four and at its end, and half a line."""
    monkeypatch.setattr(jsonl, "CHUNK", 4)
    flags = ("--prm", str(prm), "--samples", "3")
    out = evaluate(model, entry, tmp_path / "out", *flags)
    whole = [(out / name).read_bytes() for name in FILES[:3]]  # plotly draws its ids anew
    lines = whole[0].splitlines(keepends=True)
    for count in (0, 1, 3, 4, 6, 12):
        (out / FILES[0]).write_bytes(b"".join(lines[:count]) + lines[-1][: 4 * count] * (count < 12))
        (out / "results.json").unlink()
        evaluate(model, entry, out, *flags, "--resume", "--sequences", "5")
        assert [(out / name).read_bytes() for name in FILES[:3]] == whole


def test_resume__folder_in_use_and_other_settings_are_refused(
    model: Path, entry: str, without: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = Path(shutil.copytree(without, tmp_path / "out"))
    before = {name: (out / name).read_bytes() for name in FILES}
    assert main(args(model, entry, out)) == 2
    assert f"{out} holds a run already: go on with --resume" in capsys.readouterr().err
    for flags, words in {
        ("--samples", "7"): "samples: 6 -> 7",
        ("--seed", "3"): "seed: 0 -> 3",
        ("--template", "eurus"): "template: 'auto' -> 'eurus'",
        ("--temperature", "0.5"): "temperature: 1.0 -> 0.5",
        ("--limit", "3"): "limit: 0 -> 3",
        ("--benchmark", "clock"): "benchmark: ",
        ("--verify.answers", "boxed"): "verify.answers: 'auto' -> 'boxed'",
    }.items():
        assert main([*args(model, entry, out, *flags), "--resume"]) == 2
        said = capsys.readouterr().err
        assert f"{out} was begun with other settings: {words}" in said
    assert {name: (out / name).read_bytes() for name in FILES} == before


DAMAGE: list[tuple[str, object]] = [
    ("responses", None),
    ("responses", []),
    ("responses", ["a"]),
    ("responses", 3),
]
DAMAGE += [
    ("greedy", None),
    ("greedy", {}),
    ("greedy", [1]),
    ("responses", [{"reason": "right", "text": 4}] * 6),
]


@pytest.mark.parametrize(("key", "value"), DAMAGE)
def test_resume__a_row_of_another_kind_is_named_in_a_line(
    model: Path,
    entry: str,
    without: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    key: str,
    value: object,
):
    out = Path(shutil.copytree(without, tmp_path / "out"))
    path = out / FILES[0]
    rows = records(path)
    rows[1][key] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*args(model, entry, out), "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"openprime: {path} is damaged (")
    assert said.endswith("): delete it and go on with --resume, which makes it again\n")
    assert said.count("\n") == 1
    path.unlink()
    assert main([*args(model, entry, out), "--resume"]) == 0
    assert path.read_bytes() == (without / FILES[0]).read_bytes()


@pytest.mark.parametrize("text", ["", "a: [", f"{NAME}: 3"])
@pytest.mark.parametrize("name", ["benchmarks.yaml", "config.yaml", "versions.json", "data.json"])
def test_resume__a_damaged_record_is_named_in_a_line(
    model: Path,
    entry: str,
    without: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    name: str,
    text: str,
):
    out = Path(shutil.copytree(without, tmp_path / "out"))
    (out / name).write_text(text)
    status, said = main([*args(model, entry, out), "--resume"]), capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("\n") == (status != 0)
    assert status in (0, 2)
    assert status == 0 or f"{out / name} is damaged (" in said or f"{out} was begun with other" in said


def test_resume__benchmark_file_that_has_changed_is_refused(
    model: Path, entry: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Its responses would be of two kinds."""
    mine = Path(shutil.copy(entry, tmp_path / f"{NAME}.yaml"))
    flags = ("--limit", "2", "--samples", "0")
    out = evaluate(model, str(mine), tmp_path / "out", *flags)
    mine.write_text(mine.read_text().replace("horizon: 2", "horizon: 3"))
    assert main(args(model, str(mine), out, *flags, "--resume")) == 2
    said = capsys.readouterr().err
    assert f"{out} was begun with other settings: {NAME}.data.horizon: 2 -> 3" in said


def test_evaluate__nothing_is_begun_with_bad_input(
    model: Path, entry: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Else the same command, put right, would be told that the folder holds a run already."""
    spoilt = Path(shutil.copytree(model, tmp_path / "spoilt"))
    (spoilt / "model.safetensors").write_bytes(b"half a file")
    tasteless = tmp_path / "tasteless.yaml"
    tasteless.write_text('data: {source: "task:clock", verifier: "gone:score"}')
    out = ("--out", str(tmp_path / "out"))
    for given, status, words in (
        (["--benchmark", entry], 2, f"model is not set: name the model to evaluate on {NAME}, or recorded"),
        ([str(model)], 2, "benchmark is not set: put it into the YAML file or give --benchmark"),
        ([str(model), "--benchmark", "gsm9k"], 2, "no benchmark 'gsm9k'; did you mean gsm8k?"),
        ([str(model), "--benchmark", "clock", "CLOCK"], 2, "benchmark: clock is named twice: clock, CLOCK"),
        ([str(tmp_path / "gone"), "--benchmark", entry], 2, f"{tmp_path / 'gone'}: no tokenizer"),
        ([str(spoilt), "--benchmark", entry], 2, f"{spoilt}: its weights cannot be read"),
        ([str(model), "--benchmark", entry, str(tasteless)], 2, "no module gone"),
        ([str(model), "--benchmark", "gsm8k", "--data", str(tmp_path / "g.jsonl")], 2, "there is no file"),
    ):
        assert main(["evaluate", *given, *out]) == status, given
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
