"""vLLM servers: requests, weights, and servers that die, hang, or come back with other weights."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openprime.config import ServerEngineConfig
from openprime.engines import common
from openprime.engines import server as module
from openprime.engines.common import prompt_seed
from openprime.engines.server import ServerEngine
from openprime.types import EngineError, Group, Prompt, Sampling, UserError
from support.fake_server import END, Fake
from support.vllm_models import TOKENIZER, prompts_of

SAMPLING = Sampling(3, 20, 0.7)
Servers = Callable[..., Fake]


@pytest.fixture
def fake() -> Iterator[Servers]:
    """Starts servers, and stops them."""
    started: list[Fake] = []

    def start(**options) -> Fake:
        started.append(Fake(**options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.05)


def engine_of(folder: Path, *servers: Fake, timeout: float = 10.0) -> ServerEngine:
    config = ServerEngineConfig(urls=tuple(server.url for server in servers), timeout=timeout)
    (folder / "model").mkdir(exist_ok=True)
    name, weights = str(folder / "model"), folder / "weights"
    return ServerEngine(config, name, TOKENIZER, frozenset({END}), 12, 512, weights)


def numbered(count: int) -> list[Prompt]:
    """Prompts whose first token is their number."""
    return [Prompt(f"p{i}", (i, 7, 8), "", None) for i in range(count)]


def assert_right(groups: list[Group], prompts: list[Prompt], seed: int, version: int) -> None:
    """Every prompt has its own responses, in order, sampled with its own seed."""
    assert [group.prompt for group in groups] == prompts
    for i, group in enumerate(groups):
        assert group.policy_version == version
        expected = [(3 + i, 3 + prompt_seed(seed, i) % 50, 3 + k, END) for k in range(3)]
        assert [r.token_ids for r in group.responses] == expected
        assert [r.logprobs for r in group.responses] == [(-1.0, -2.0, -float(k), -4.0) for k in range(3)]
        assert not any(r.truncated for r in group.responses)


def test_generate__a_request_says_all_that_a_models_own_settings_would_fill_in(fake: Servers, tmp_path: Path):
    server = fake()
    engine = engine_of(tmp_path, server)
    engine.generate([*numbered(1), *prompts_of([500])], SAMPLING, 9)
    short, long = sorted(server.asked, key=lambda body: len(body["prompt"]))
    assert long["max_tokens"] == 12  # its prompt leaves no more of 512
    assert short == {
        "prompt": [0, 7, 8],
        "n": 3,
        "max_tokens": 20,
        "temperature": 0.7,
        "seed": prompt_seed(9, 0),
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": [END],
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
    }


def test_generate__spreads_prompts_and_hands_groups_over_as_they_end(fake: Servers, tmp_path: Path):
    servers = [fake(seconds=0.03), fake(seconds=0.03)]
    engine, prompts = engine_of(tmp_path, *servers), numbered(30)
    seen: list[Group] = []
    progress: list[int] = []
    groups = engine.generate(prompts, SAMPLING, 1, lambda: progress.append(len(seen)), seen.append)
    assert_right(groups, prompts, 1, 0)
    assert sorted(map(id, seen)) == sorted(map(id, groups))
    assert len(set(progress)) > 3
    counts = [len(server.asked) for server in servers]
    assert sum(counts) == 30
    assert min(counts) >= 8


def test_load__new_weights_are_taken_before_anything_is_sampled(fake: Servers, tmp_path: Path):
    servers = [fake(), fake()]
    engine, prompts = engine_of(tmp_path, *servers), numbered(8)
    engine.generate(prompts, SAMPLING, 1)
    assert [server.taken for server in servers] == [[str(tmp_path / "model")]] * 2
    weights = {"a.weight": torch.randn(5, 3), "b.weight": torch.randn(4).bfloat16()}
    for version in (1, 2, 3):
        engine.load(((name, tensor + version) for name, tensor in weights.items()), version)
    groups = engine.generate(prompts, SAMPLING, 1)
    assert_right(groups, prompts, 1, 3)
    for server in servers:
        assert len(server.taken) == 2
        (file,) = Path(server.taken[-1]).iterdir()
        got = load_file(file)
        assert set(got) == set(weights)
        assert all(torch.equal(got[name], weights[name] + 3) for name in weights)
    assert len(list((tmp_path / "weights").iterdir())) <= 2  # old ones are deleted


def test_load__cuts_weights_into_files(fake: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common, "SHARD", 100)
    engine = engine_of(tmp_path, fake())
    weights = {f"w{i}": torch.randn(7) for i in range(9)}  # 28 bytes each
    engine.load(weights.items(), 1)
    files = list(Path(engine.source.path).iterdir())
    assert len(files) == 3
    together = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert all(torch.equal(together[name], weights[name]) for name in weights)


def test_generate__a_server_that_dies_in_mid_run_loses_nothing(
    fake: Servers, tmp_path: Path, capfd: pytest.CaptureFixture
):
    servers = [fake(seconds=0.05), fake(seconds=0.05)]
    engine, prompts = engine_of(tmp_path, *servers), numbered(40)
    seen: list[Group] = []

    def finished(group: Group) -> None:
        seen.append(group)
        if len(seen) == 10:
            servers[0].stop()

    groups = engine.generate(prompts, SAMPLING, 1, None, finished)
    assert_right(groups, prompts, 1, 0)
    assert len(seen) == len({group.prompt.id for group in seen}) == 40
    assert servers[0].url in capfd.readouterr().out
    again = engine.generate(prompts, SAMPLING, 1)  # and the next call goes on with what is left
    assert again == groups


def test_generate__a_server_that_comes_back_is_given_the_weights_again(fake: Servers, tmp_path: Path):
    servers = [fake(seconds=0.02), fake(seconds=0.02)]
    engine, prompts = engine_of(tmp_path, *servers), numbered(60)
    engine.load([("w", torch.ones(1))], 5)
    seen = 0

    def finished(_: Group) -> None:
        nonlocal seen
        seen += 1
        if seen == 8:
            servers[0].stop()
            servers[0].released.clear()
            servers[0].start()  # another process would be: without our weights
            servers[0].asked.clear()

    groups = engine.generate(prompts, SAMPLING, 1, None, finished)
    assert_right(groups, prompts, 1, 5)
    assert servers[0].asked
    assert servers[0].version == servers[1].version == engine.source.tag
    assert servers[0].taken == [engine.source.path] * 2


def test_generate__a_response_from_other_weights_is_thrown_away(fake: Servers, tmp_path: Path):
    """A server that was started anew between two requests, so fast that no request failed."""
    server = fake()
    engine, prompts = engine_of(tmp_path, server), numbered(6)
    engine.generate(prompts, SAMPLING, 1)
    server.version = "default"
    assert_right(engine.generate(prompts, SAMPLING, 1), prompts, 1, 0)
    assert len(server.taken) == 2
    assert server.version == engine.source.tag


@pytest.mark.parametrize(("fault", "timeout"), [({"hangs": True}, 0.5), ({"reason": "abort"}, 10.0)])
def test_generate__a_server_that_hangs_or_cuts_responses_short_is_left_for_another(
    fake: Servers, tmp_path: Path, fault: dict, timeout: float
):
    servers = [fake(**fault), fake()]
    engine, prompts = engine_of(tmp_path, *servers, timeout=timeout), numbered(20)
    assert_right(engine.generate(prompts, SAMPLING, 1), prompts, 1, 0)
    assert servers[0].asked


def test_generate__a_prompt_that_no_server_survives_is_given_up(fake: Servers, tmp_path: Path):
    engine = engine_of(tmp_path, fake(reason="abort"), fake(reason="abort"))
    with pytest.raises(EngineError, match="3 times over one prompt"):
        engine.generate(numbered(4), SAMPLING, 1)


def test_generate__without_any_server_it_waits_and_then_gives_up(fake: Servers, tmp_path: Path):
    server = fake()
    engine, prompts = engine_of(tmp_path, server, timeout=3.0), numbered(6)
    server.stop()
    timer = threading.Timer(0.3, lambda: (server.released.clear(), server.start()))
    timer.start()
    assert_right(engine.generate(prompts, SAMPLING, 1), prompts, 1, 0)
    timer.join()
    server.stop()
    engine.timeout = 0.5
    with pytest.raises(EngineError, match="no vLLM server has answered"):
        engine.generate(prompts, SAMPLING, 1)
    server.released.clear()
    server.start()


def test_generate__an_interrupt_ends_what_is_under_way(fake: Servers, tmp_path: Path):
    server = fake(hangs=True)
    engine = engine_of(tmp_path, server, timeout=25)
    asked = iter(range(3))

    def check() -> None:
        if next(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(numbered(8), SAMPLING, 1, check)
    assert server.asked
    assert not server.waited  # nobody stayed for an answer
    server.hangs = False
    assert_right(engine.generate(numbered(8), SAMPLING, 1), numbered(8), 1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logprobs_mode": "raw_logprobs"}, "raw_logprobs.*--logprobs-mode processed_logprobs"),
        ({"extension": ""}, "cannot take new weights.*--worker-extension-cls"),
        ({"max_model_len": 100}, "--max-model-len 512"),
    ],
)
def test_server_engine__a_server_that_was_started_otherwise_is_refused(
    fake: Servers, tmp_path: Path, options: dict, message: str
):
    with pytest.raises(UserError, match=message):
        engine_of(tmp_path, fake(), fake(**options))


def test_server_engine__no_server_at_all_is_an_error_at_the_start(fake: Servers, tmp_path: Path):
    first, second = fake(), fake()
    second.stop()
    engine_of(tmp_path, first, second)  # one is enough
    first.stop()
    with pytest.raises(UserError, match=r"no server answers.*VLLM_SERVER_DEV_MODE=1 vllm serve"):
        engine_of(tmp_path, first, second)
    for server in (first, second):
        server.start()


def test_server_engine__every_rank_has_servers_of_its_own_and_the_first_one_writes(tmp_path: Path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "support.server_ranks", str(tmp_path / "weights")]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "weights").iterdir())) == 2
