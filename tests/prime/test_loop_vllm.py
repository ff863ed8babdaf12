"""`openprime rl` with vLLM beside the trainer and with vLLM servers; the real vLLM, on a CPU."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from openprime.cli import main
from openprime.config import ServerEngineConfig
from openprime.engines.server import ServerEngine
from openprime.models.hub import load_model, load_tokenizer
from openprime.types import Prompt, Sampling
from support import rank_runs
from support.tiny_runs import CLOCK, PYTHONPATH, RL, SFT, metrics, records, start, wait_for, weights

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (.ci/vllm installs it)"),
]
OPEN = ("--filter.low", "0", "--filter.high", "1")


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small SFT model, with heads as wide as vLLM's attention on a CPU wants them."""
    out = tmp_path_factory.mktemp("sft") / "run"
    assert main([*SFT, "--new-model.hidden-size", "64", "--out", str(out)]) == 0
    return out / "model"


def rl(model: Path, out: Path, *flags: str) -> list[str]:
    return [*RL, "--model", str(model), "--out", str(out), *flags]


def test_train_vllm__two_steps_beside_the_trainer(sft: Path, tmp_path: Path):
    assert main(rl(sft, tmp_path / "a", "--engine.kind", "vllm", "--policy.importance-clip", "2")) == 0
    first, *rows = records(tmp_path / "a" / "metrics.jsonl")
    assert "eval/greedy" in first
    assert len(rows) == 2
    for row in rows:
        assert 0 < row["policy/mismatch_max"] < 1e-3  # a second engine's rounding, and no more
        assert row["policy/importance_mean"] == pytest.approx(1, abs=1e-3)
        assert row["policy/importance_truncated"] == 0
    assert weights(tmp_path / "a" / "model") != weights(sft)


def test_train_vllm__a_run_with_vllm_is_resumed_bit_for_bit(sft: Path, tmp_path: Path):
    flags = ("--engine.kind", "vllm", "--steps", "3", "--save-every", "1", "--eval.every", "0", *OPEN)
    assert main(rl(sft, tmp_path / "whole", *flags)) == 0
    assert main(rl(sft, tmp_path / "cut", *flags, "--steps", "2")) == 0
    assert main(rl(sft, tmp_path / "cut", *flags, "--resume")) == 0
    assert weights(tmp_path / "cut" / "model") == weights(tmp_path / "whole" / "model")
    assert repr(metrics(tmp_path / "cut")[-1]) == repr(metrics(tmp_path / "whole")[-1])


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_train_vllm__other_commands_sample_with_it_as_well(sft: Path, tmp_path: Path, command: str):
    """Greedy responses are those of the transformers engine."""

    def run(kind: str) -> list[dict]:
        out, same = tmp_path / kind, ("--engine.kind", kind, "--max-response-tokens", "16")
        if command == "generate":
            asked = (*CLOCK[:4], "--data.limit", "12", "--temperature", "0", "--responses", "1")
            assert main(["generate", str(sft), *asked, *same, "--out", str(out)]) == 0
            return records(out / "responses.jsonl")
        (tmp_path / "small.yaml").write_text("data: {source: 'task:clock', horizon: 2, limit: 12}\n")
        asked = ("--benchmark", str(tmp_path / "small.yaml"))
        assert main(["evaluate", str(sft), *asked, *same, "--out", str(out)]) == 0
        return records(out / "small" / "responses.jsonl")

    ours, theirs = run("vllm"), run("transformers")
    assert len(ours) == len(theirs) == 12
    for row, other in zip(ours, theirs, strict=True):
        response, expected = (
            (r["responses"][0] if command == "generate" else r["greedy"]) for r in (row, other)
        )
        for key in ("response", "text", "outcome", "reason", "truncated"):
            assert response.get(key) == expected.get(key)


def serve(model: Path, folder: Path) -> tuple[str, subprocess.Popen]:
    """Starts a vLLM server, as docs/scaling.md says for a CPU; returns its address and process."""
    port = rank_runs.free_port()
    log = (folder / f"server-{port}.log").open("w")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *("--port", str(port), "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"),
            "--no-enable-chunked-prefill",
            *("--logprobs-mode", "processed_logprobs"),
            *("--worker-extension-cls", "openprime.engines.vllm_worker.Weights"),
        ],
        env=os.environ
        | PYTHONPATH
        | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    return f"http://127.0.0.1:{port}", process


@pytest.fixture
def server(sft: Path, tmp_path: Path) -> Iterator[Callable[[], tuple[str, subprocess.Popen]]]:
    """Starts servers, and stops them."""
    started: list[subprocess.Popen] = []

    def run() -> tuple[str, subprocess.Popen]:
        url, process = serve(sft, tmp_path)
        started.append(process)
        return url, process

    yield run
    for process in started:
        kill(process)


@pytest.fixture(scope="module")
def three(
    sft: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[tuple[str, subprocess.Popen]]]:
    """Three servers that answer, and had weights of other runs before."""
    started = [serve(sft, tmp_path_factory.mktemp("servers")) for _ in range(3)]
    try:
        for url, process in started:
            until_ready(url, process)
        yield started
    finally:
        for _, process in started:
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """The server and its engine's process."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until_ready(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 900
    while True:
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < end, "the server does not start"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)


@pytest.mark.timeout(1200)
def test_train_vllm__two_servers_one_of_which_is_killed_and_then_the_other(server, sft: Path, tmp_path: Path):
    """Without the first nothing is lost; without both the run saves, says so, and goes on with new ones."""
    (first, one), (second, two) = server(), server()
    until_ready(first, one)
    until_ready(second, two)
    flags = (
        *("--steps", "6", "--save-every", "0", "--eval.every", "0", "--eval-data.source", "", *OPEN),
        *("--rollout.prompts", "20", "--policy.minibatch", "80", "--engine.timeout", "20"),
    )
    urls = ("--engine.kind", "server", "--engine.urls", first, second)
    out = tmp_path / "run"
    process = start(rl(sft, out, *flags, *urls))
    done = out / "metrics.jsonl"
    wait_for(lambda: done.is_file() and len(records(done)) > 2, process, 300)
    kill(one)
    before = len(records(done))
    wait_for(lambda: len(records(done)) > before, process, 300)
    if process.poll() is None:
        kill(two)
    said, errors = process.communicate(timeout=300)
    assert f"{first}: " in said
    rows = records(done)
    if len(rows) < 7:  # else it was done before the second one died
        assert process.returncode == 1
        assert "no vLLM server has answered" in errors
        assert "saved after step" in said
        third, other = server()
        until_ready(third, other)
        again = start(rl(sft, out, *flags, "--engine.kind", "server", "--engine.urls", third, "--resume"))
        assert again.communicate(timeout=300)[0]
        assert again.returncode == 0
    # The same run with the engine beside the trainer: no group was lost or repeated.
    assert main(rl(sft, tmp_path / "beside", *flags, "--engine.kind", "vllm")) == 0
    got, expected = metrics(out), metrics(tmp_path / "beside")
    assert [row["step"] for row in got] == [0, 1, 2, 3, 4, 5, 6]
    for row, other in zip(got, expected, strict=True):
        assert row["rollout/rollouts"] == other["rollout/rollouts"]
        if row["step"]:
            assert row["rollout/tokens"] == other["rollout/tokens"]
            assert row["reward/outcome"] == pytest.approx(other["reward/outcome"])
            assert row["policy/mismatch_max"] < 1e-3


def test_train_vllm__sampling_ahead_of_the_trainer(server, sft: Path, tmp_path: Path):
    url, process = server()
    until_ready(url, process)
    out = tmp_path / "ahead"
    flags = ("--rollout.max-staleness", "2", "--policy.importance-clip", "1.5", "--steps", "6", *OPEN)
    assert main(rl(sft, out, *flags, "--engine.kind", "server", "--engine.urls", url)) == 0
    rows = records(out / "metrics.jsonl")[1:]
    assert len(rows) == 6
    assert all(0 <= row["rollout/staleness"] <= 2 for row in rows)
    assert max(row["rollout/staleness"] for row in rows) > 0
    assert max(row["policy/mismatch_max"] for row in rows) > 1e-3  # of older weights
    assert all(row["policy/importance_mean"] > 0 for row in rows)
    info = json.loads(urllib.request.urlopen(f"{url}/weight_info").read())
    assert info["weight_version"].endswith("-6")  # the last evaluation's


def tokens_of(url: str) -> float:
    """Tokens that a server has sampled."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total"))


@pytest.mark.timeout(1800)
def test_server_engine__in_flight_a_response_goes_on_from_the_new_weights(three, sft: Path, tmp_path: Path):
    """Its first tokens have the log-probabilities of the old model, its later ones those of the new model alone."""
    old, new = load_model(str(sft)), load_model(str(sft))
    with torch.no_grad():
        for weight in new.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    urls = tuple(url for url, _ in three[1:])
    prompt = Prompt("p", tuple(load_tokenizer(str(sft))("Start four").input_ids), "", None)
    size = old.config.vocab_size
    engine = ServerEngine(
        ServerEngineConfig(urls=urls, in_flight=True),
        *(str(sft), load_tokenizer(str(sft)), frozenset(), size, 8, 512, tmp_path / "weights"),
    )
    for server in engine.servers:  # both need the first weights
        server.take(engine.source)
    before = [tokens_of(url) for url in urls]
    loaded: list[bool] = []

    def load_once() -> None:
        if not loaded and all(tokens_of(url) > begun + 40 for url, begun in zip(urls, before, strict=True)):
            loaded.append(True)
            engine.load(((name, weight.detach()) for name, weight in new.named_parameters()), 1)

    groups = engine.generate([prompt] * 4, Sampling(4, 480), 5, load_once)
    assert [group.policy_version for group in groups] == [0] * 4

    def under(model: PreTrainedModel, tokens: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            logits = model(torch.tensor([prompt.token_ids + tokens])).logits[
                0, len(prompt.token_ids) - 1 : -1
            ]
        return logits.log_softmax(-1)[range(len(tokens)), list(tokens)]

    switched = 0
    for response in (response for group in groups for response in group.responses):
        assert len(response.token_ids) == 480
        got = torch.tensor(response.logprobs)
        first, then = ((under(model, response.token_ids) - got).abs() < 2e-3 for model in (old, new))
        (places,) = (~first).nonzero(as_tuple=True)
        if len(places):
            switched += 1
            assert 0 < places[0] < 480
            assert then[places[0] :].all()
        assert not first.all() or not then.all()
    assert switched  # the other server may have been done before
    assert {
        json.loads(urllib.request.urlopen(f"{url}/weight_info").read())["weight_version"] for url in urls
    } == {engine.source.tag}


@pytest.mark.timeout(1800)
def test_train_vllm__four_ranks_with_one_server_do_what_one_process_does_with_three(
    three, sft: Path, tmp_path: Path
):
    urls = [url for url, _ in three]
    flags = ("--steps", "3", "--rollout.prompts", "6", "--policy.minibatch", "12", "--policy.lr", "1e-4")
    flags = (*flags, "--engine.kind", "server", "--engine.urls")
    assert main(rl(sft, tmp_path / "one", *flags, *urls)) == 0
    rank_runs.on_ranks(4, rl(sft, tmp_path / "four", *flags, urls[0]))
    got, expected = metrics(tmp_path / "four"), metrics(tmp_path / "one")
    assert [row["step"] for row in got] == [0, 1, 2, 3]
    for row, other in zip(got, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if name not in rank_runs.NOISE and (row["step"], name) != (1, "prm/pairwise_accuracy"):
                assert value == pytest.approx(other[name], rel=1e-5, abs=1e-5), (row["step"], name)
    assert max(row["policy/mismatch_max"] for row in got[1:]) < 1e-3


@pytest.mark.timeout(1800)
def test_train_vllm__two_ranks_sample_ahead_and_a_server_is_killed(three, sft: Path, tmp_path: Path):
    (first, one), (second, _), _ = three
    out, done = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    flags = ("--rollout.max-staleness", "2", "--policy.importance-clip", "1.5", "--steps", "8", *OPEN)
    flags = (
        *flags,
        "--rollout.prompts",
        "20",
        "--policy.minibatch",
        "80",
        "--save-every",
        "1",
        "--keep",
        "9",
    )
    flags = (*flags, "--engine.kind", "server", "--engine.timeout", "60", "--engine.urls")
    process = rank_runs.start(2, rl(sft, out, *flags, first, second))
    wait_for(lambda: done.is_file() and len(records(done)) > 2, process, 300)
    kill(one)
    said = rank_runs.finish(process)
    assert process.returncode == 0, said
    assert f"{first}: " in said
    rows = records(done)[1:]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(0 <= row["rollout/staleness"] <= 2 for row in rows)
    assert max(row["rollout/staleness"] for row in rows) > 0
    assert [row["rollout/rollouts"] for row in rows] == [
        80 * step for step in range(1, 9)
    ]  # none lost, none twice
    resumed = rank_runs.back_to(5, out, tmp_path / "resumed")
    rank_runs.on_ranks(2, rl(sft, resumed, *flags, second, "--resume"))
    assert [row["step"] for row in records(resumed / "metrics.jsonl")] == list(range(9))
