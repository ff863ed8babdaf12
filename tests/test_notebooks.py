"""The notebooks are run, each in a kernel of its own, and what their cells show is looked at."""

import json
from itertools import combinations, product
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from support.tiny_runs import PYTHONPATH

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook__is_kept_without_what_it_has_shown(path: Path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), "clear the outputs"


def execute(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str) -> tuple[list[dict], Any]:
    """What the cells have shown, and the value of an expression at the end."""
    if PYTHONPATH["PYTHONPATH"]:
        monkeypatch.setenv("PYTHONPATH", PYTHONPATH["PYTHONPATH"])
    notebook = nbformat.read(FOLDER / name, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({last}))"))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    nbformat.write(notebook, tmp_path / name)  # to be looked at
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any("\x1b" in output.get("text", "") for output in outputs), "progress is plain lines"
    complaints = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in complaints if "TqdmWarning" not in text]  # of there being no ipywidgets
    printed = "".join(output["text"] for output in notebook.cells[-1].outputs)  # it comes in pieces
    return outputs, json.loads(printed)


def cards(outputs: list[dict]) -> list[str]:
    """The HTML of the cells' values."""
    return [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]


def test_score__tokens_have_the_colours_of_their_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    last = "[[s.tokens, s.token_rewards, s.reward, s.reference_logprobs] for s in (good, odd)]"
    outputs, found = execute("01-score.ipynb", tmp_path, monkeypatch, last)
    shown = cards(outputs)
    assert len(shown) == 2
    for html, (tokens, rewards, reward, _) in zip(shown, found, strict=True):
        assert reward == pytest.approx(sum(rewards))
        assert f"reward {reward:+.4f}" in html
        assert html.count('title="') == len(tokens)
        for token, value in zip(tokens, rewards, strict=True):
            if token.strip():
                assert f'title="{value:+.4f}">{token}</span>' in html
    (good, good_rewards, *_), (odd, odd_rewards, *_) = found
    assert good_rewards[good.index("4")] > 0 > odd_rewards[odd.index("5")], (
        "the digit at the end is what counts"
    )


def test_train__the_function_of_the_cell_judges_every_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outputs, (seen, rows, samples) = execute(
        "02-train.ipynb", tmp_path, monkeypatch, "[seen, run.metrics, run.samples]"
    )
    measured = [row["eval/greedy"] for row in rows if "eval/greedy" in row]
    assert len(measured) == 3
    assert len(seen) == rows[-1]["rollout/rollouts"] + 50 * len(measured)
    assert measured[-1] > measured[0] + 0.1
    for sample in samples:
        text = "".join(token for token in sample["tokens"] if not token.startswith("<|"))
        assert sample["outcome"] == float(text[-1:] in {*"02468"})
    said = "".join(output.get("text", "") for output in outputs)
    assert [f"rl {step}/4 " in said for step in (1, 2, 3, 4)] == [True] * 4, "progress"
    assert f"step 0: {measured[0]:.2f} of the held-out answers are even" in said
    assert len(cards(outputs)) == 1


def test_compare__the_numbers_are_those_counted_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    last = """[[str(p) for p in prompts], outcomes, {k: [s.reward for s in v] for k, v in comparison.scores.items()},
        comparison.measures, comparison.best_of_n]"""
    outputs, (prompts, outcomes, rewards, measures, best) = execute(
        "03-compare.ipynb", tmp_path, monkeypatch, last
    )
    groups = [[i for i, p in enumerate(prompts) if p == name] for name in dict.fromkeys(prompts)]
    assert len(prompts) == 200
    assert len(groups) > 40, "two of the 50 may be the same question"
    for name, values in rewards.items():
        each, best_of_2 = [], []
        for group in groups:
            pairs = [(i, j) for i, j in product(group, group) if outcomes[i] > outcomes[j]]
            won = [1.0 if values[i] > values[j] else 0.5 * (values[i] == values[j]) for i, j in pairs]
            each += [sum(won) / len(won)] if won else []
            chosen = [
                (outcomes[i] + outcomes[j]) / 2
                if values[i] == values[j]
                else outcomes[max(i, j, key=values.__getitem__)]
                for i, j in combinations(group, 2)
            ]
            best_of_2.append(sum(chosen) / len(chosen))
        assert measures[name]["pairwise_accuracy"] == pytest.approx(sum(each) / len(each), abs=1e-9)
        assert best[name]["2"] == pytest.approx(sum(best_of_2) / len(best_of_2))
        assert f"{measures[name]['pairwise_accuracy']:.3f}" in cards(outputs)[0]
    many, few = measures.values()
    assert many["pairwise_accuracy"] > 0.9 > few["pairwise_accuracy"]
    assert len(cards(outputs)) == 2
