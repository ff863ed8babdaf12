"""The gate of a GPU: every finding of docs/gpu.md as a check, and what a step costs, in ten minutes on one card.

    python benchmarks/gpu.py --out runs/gate                       # all parts that this machine has packages for
    python benchmarks/gpu.py --out runs/gate --parts prime vllm    # some of them, anew
    python benchmarks/gpu.py --device cpu --shape tiny        # the same code on a CPU, to see that it works

Every part runs in a process of its own and leaves OUT/PART.json; parts that are there are not run again. At the end
comes a table, and OUT/gate.json. Weights are random, so that hardly a response ends before its full length;
the verifier costs nothing. A step's times are medians over the steps but the first, with the device
synchronised at the ends of each phase. Model FLOP use counts what the algorithm needs, not what gradient checkpointing
repeats, over the card's peak as its maker says, or as measured where that is not known. Memory is what PyTorch has
allocated at each phase's peak (on a CPU the resident set), beside `openprime plan`.
"""

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plan_memory import forget_peak, resident
from step_work import Shape, alternate, make_files

SHAPES = {
    "tiny": Shape(256, 4, 4, 2, 768, 4096, 4, 4, 64),
    "0.5B": Shape(896, 24, 14, 2, 4864, 151_936, 16, 8, 256, (128, 256)),
    "1.5B": Shape(1536, 28, 12, 2, 8960, 151_936, 16, 8, 256, (128, 256)),
    "7B": Shape(3584, 28, 28, 4, 18944, 152_064, 16, 8, 512, (128, 256)),
}
PHASES = ("rollout", "reference", "prm", "policy")
GiB = 2**30


def row(finding: str, what: str, found: Any, wanted: str, right: bool | None) -> dict[str, Any]:
    """A line of the table; `right` None: nothing is asked of it."""
    return {"finding": finding, "what": what, "found": found, "wanted": wanted, "right": right}


def sync(args: argparse.Namespace) -> None:
    """Wait for the device."""
    import torch

    if args.device == "cuda":
        torch.cuda.synchronize()


def seconds_of(args: argparse.Namespace, work: Callable[[], object], repeats: int = 1) -> float:
    """Of one call."""
    sync(args)
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    sync(args)
    return (time.perf_counter() - begun) / repeats


def host_bytes() -> int:
    """The most that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Parts


def attention(folder: Path, args: argparse.Namespace) -> list[dict]:
    """F1, F2, F12: no plan for every shape; float32 is not quadratic in memory; `varlen_attn` beside padded blocks."""
    import torch
    from torch.nn import Module

    from openprime.models.attention import attention as own

    small, rows = args.device == "cpu", []
    rows.append(row("F1", "cuDNN's attention is off", not torch.backends.cuda.cudnn_sdp_enabled(), "True",
                    not torch.backends.cuda.cudnn_sdp_enabled()))  # fmt: skip

    def heads(b: int, t: int, dtype: torch.dtype, q: int = 14, k: int = 2, d: int = 64) -> list:
        return [
            torch.randn(b, h, t, d, device=args.device, dtype=dtype, requires_grad=True) for h in (q, k, k)
        ]

    module = Module()
    module.num_key_value_groups = 7  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
    before, new, back = host_bytes(), [], []
    for i in range(4 if small else 30):
        parts, out = heads(2 + i % 5, (10 if small else 900) + 13 * i, torch.bfloat16), []
        new.append(seconds_of(args, lambda parts=parts, out=out: out.append(own(module, *parts, None)[0])))
        back.append(seconds_of(args, lambda out=out: out[0].float().sum().backward()))
    seen = seconds_of(args, lambda: own(module, *parts, None), 5)
    ratio = statistics.median(new[1:]) / seen
    said = f"{1e3 * statistics.median(new):.2f} and {1e3 * statistics.median(back):.2f} ms, seen {1e3 * seen:.2f} ms"
    rows.append(
        row(
            "F1",
            "a shape not seen before, forward and backward",
            said,
            "below 5 x a seen one",
            None if small else ratio < 5,
        )
    )
    rows.append(
        row("F1", "host memory that the shapes keep", f"{(host_bytes() - before) / 2**20:.0f} MiB", "", None)
    )
    if not small:
        for dtype in (torch.float32, torch.bfloat16):
            parts = heads(11, 1500, dtype)
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            out = own(module, *parts, None)[0]
            most = torch.cuda.max_memory_allocated() - held
            bound = 6 * out.numel() * out.element_size()  # quadratic: 1,500 x 1,500 numbers a head
            rows.append(row("F2", f"a layer of 16,500 tokens in {dtype}", f"{most / 2**20:,.0f} MiB",
                            f"below {bound / 2**20:,.0f}", most < bound))  # fmt: skip
    return rows + packed_attention(args) + gathered()


def log_normal(rows: int, responses: int, prompt: int, longest: int, tokens: int) -> tuple[Any, Any]:
    """token_ids and mask [B, T] of log-normal responses, groups with a prompt each, of `tokens` tokens at most."""
    import torch

    g = torch.Generator().manual_seed(0)
    lengths = (
        torch.empty(rows).log_normal_(6.6, 0.7, generator=g).mul(longest / 3072).clamp(8, longest).long()
    )
    lengths = lengths[(lengths + prompt).cumsum(0) <= tokens] + prompt
    group, places = torch.arange(len(lengths)) // responses, torch.arange(int(lengths.max()))
    ids = torch.randint(500, (len(lengths), len(places)), generator=g)
    ids[:, :prompt] = ids[group * responses, :prompt]
    return ids, (places >= prompt) & (places < lengths[:, None])


def packed_attention(args: argparse.Namespace) -> list[dict]:
    """`varlen_attn` and padded blocks against float64: values, gradients, times; on a CPU its stand-in."""
    import torch
    from torch.nn import Module

    from openprime.models import attention as module
    from openprime.models.logprobs import pack

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from support.varlen import plain_varlen_attn

    cuda, device, rows, real = args.device == "cuda", torch.device(args.device), [], module.varlen_attn
    sizes = (64, 4, 200, 3072, 16384) if cuda else (8, 4, 8, 96, 400)
    ids, mask = log_normal(*sizes)
    owner = Module()
    owner.num_key_value_groups = 7  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
    owner.is_causal = True  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
    g = torch.Generator().manual_seed(0)
    tokens = pack(ids, mask).token_ids.shape[1]
    drawn = [torch.randn(1, h, tokens, 128, generator=g).bfloat16() for h in (28, 4, 4)]
    slope = torch.randn(1, tokens, 28, 128, generator=g).to(device)
    for window in (None, 512 if cuda else 16):
        found: dict[str, list] = {}
        for name, dtype in (
            ("float64", torch.float64),
            ("blocks", torch.bfloat16),
            ("varlen", torch.bfloat16),
        ):
            packing = pack(ids, mask, device, sequences=name != "blocks")
            parts = [x.to(device, dtype, copy=True).requires_grad_() for x in drawn]
            module.varlen_attn = plain_varlen_attn if name == "float64" or not cuda else real

            how = {"packing": packing, "scaling": 128**-0.5, "sliding_window": window}

            def attend(parts=parts, how=how):
                return module.attention(owner, *parts, None, **how)[0]

            def train(attend=attend):
                out = attend()
                out.backward(slope.to(out.dtype))
                return out.detach()

            found[name] = [train(), *(part.grad.clone() for part in parts)]
            if cuda and name != "float64":
                took = seconds_of(args, attend, 5), seconds_of(args, train, 5)
                what = f"attention, {name}{', window of 512' * bool(window)}: forward; forward and backward"
                said = f"{1e3 * took[0]:.2f}; {1e3 * took[1]:.2f} ms"
                rows.append(row("F12", f"{what}, {tokens:,} tokens of 7B", said, "", None))
        blocks, ours = (
            [
                float((x.double() - y).norm() / y.norm())
                for x, y in zip(found[name], found["float64"], strict=True)
            ]
            for name in ("blocks", "varlen")
        )
        bounds = [2 * gap for gap in blocks] if cuda else [1e-2] * 4  # blocks are float32 on a CPU
        right = all(gap <= bound for gap, bound in zip(ours, bounds, strict=True))
        said, wanted = (", ".join(f"{gap:.1e}" for gap in gaps) for gaps in (ours, bounds))
        what = f"varlen_attn{', window' * bool(window)}: error of values and of three gradients"
        rows.append(row("F12", what, said, f"at most {wanted}", right))
    module.varlen_attn = real
    return rows


def gathered() -> list[dict]:
    """F12: what attention is handed and copies in a layer of 7B, counted on tensors without memory, on any machine."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn import Module

    from openprime.models import attention as module
    from openprime.models.logprobs import pack

    ids, mask = log_normal(64, 4, 200, 3072, 16384)
    real, rows = (module.embedding, module.varlen_attn, module._set_out), []
    for name, sequences in (("padded blocks, as before", False), ("varlen_attn", True)):
        packing, copied, handed = pack(ids, mask, sequences=sequences), [], []

        def copy(index, weight, copied=copied):
            copied.append(index.numel() * weight[0].numel() * weight.element_size())
            return real[0](index, weight)

        def note(q, k, v, *args, handed=handed, **how):
            handed.append(tuple(q.shape))
            return real[1](q, k, v, *args, **how)

        def block(owner, q, *args, handed=handed, **how):
            handed.append(tuple(q.shape))
            return q.transpose(1, 2)

        module.embedding, module.varlen_attn, module._set_out = copy, note, block
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.autocast("cpu", torch.bfloat16),
            torch.no_grad(),
        ):
            # Rotation leaves queries and keys in float32.
            parts = [torch.empty(1, packing.token_ids.shape[1], h, 128).transpose(1, 2) for h in (28, 4, 4)]
            module.attention(Module(), *parts, None, packing, scaling=0.1)
        module.embedding, module.varlen_attn, module._set_out = real
        said = f"{sum(copied) / 2**20:,.0f} MiB in {len(copied)} copies, {len(handed)} calls"
        rows.append(
            row("F12", f"a layer of 7B, {packing.token_ids.shape[1]:,} tokens, {name}", said, "", None)
        )
    return rows


def precision(folder: Path, args: argparse.Namespace) -> list[dict]:
    """F2: what `dtype: auto` is here."""
    import torch

    from openprime.config import PrimeConfig
    from openprime.models.placement import Placement

    place = Placement.of(PrimeConfig(device=args.device))
    wanted = args.device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    conf = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    return [row("F2", "dtype: auto multiplies in bfloat16", place.bfloat16, str(wanted), place.bfloat16 == wanted),
            row("F4b", "allocator", conf, "expandable_segments", "expandable_segments" in conf)]  # fmt: skip


def head(folder: Path, args: argparse.Namespace) -> list[dict]:
    """F3: the head in chunks of tokens, exact and with TF32, beside blocks of the vocabulary; and its values."""
    import torch

    from openprime.models import logprobs
    from openprime.models.logprobs import selected_logprobs

    shape = SHAPES[args.shape]
    n, d, v = (16384, shape.hidden, shape.vocabulary) if args.device == "cuda" else (512, 64, 2048)
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=g).to(args.device).requires_grad_()
    weight = (0.05 * torch.randn(v, d, generator=g)).to(args.device).requires_grad_()
    ids = torch.randint(v, (n, 1), generator=g).to(args.device)
    found, rows = {}, []
    by_tokens = logprobs.by_tokens
    for name, chunks, narrow in (("vocabulary", False, True), ("float32", True, False), ("TF32", True, True)):
        logprobs.by_tokens = lambda device, chunks=chunks: chunks

        def train(narrow: bool = narrow) -> torch.Tensor:
            hidden.grad = weight.grad = None
            values = selected_logprobs(hidden, weight, None, ids, 1.0, narrow)
            values.sum().backward()
            return values.detach()

        values = train()
        took = seconds_of(args, train, 2)
        assert hidden.grad is not None
        found[name] = took, values, hidden.grad.clone()
    logprobs.by_tokens = by_tokens
    sample = slice(0, 64)
    with torch.no_grad():
        exact = (hidden[sample].double() @ weight.double().T).log_softmax(-1).gather(-1, ids[sample])
    for name, bound in (("float32", 1e-4), ("TF32", 2e-2)):
        gap = float((found[name][1][sample] - exact).abs().max())
        rows.append(
            row(
                "F3",
                f"head in chunks, {name}, against float64",
                f"{gap:.1e} nats",
                f"below {bound}",
                gap < bound,
            )
        )
    for name, (took, _, _) in found.items():
        rows.append(
            row("F3", f"head, {name}: forward and backward of {n:,} tokens", f"{1e3 * took:.0f} ms", "", None)
        )
    if args.device == "cuda":
        faster = found["vocabulary"][0] / found["TF32"][0]
        rows.append(
            row(
                "F3",
                "chunks of tokens beside blocks of the vocabulary",
                f"{faster:.1f} x as fast",
                "above 2",
                faster > 2,
            )
        )
    return rows


def reads(folder: Path, args: argparse.Namespace) -> list[dict]:
    """F13: what the host reads in an optimiser step, by the number of micro-batches; shapes handed to attention."""
    import torch

    from openprime.config import OptimizerConfig
    from openprime.models import attention as module
    from openprime.models import logprobs
    from openprime.models.hub import load_model
    from openprime.models.lm import LM
    from openprime.models.placement import Placement
    from openprime.prime.learner import Learner
    from openprime.prime.losses import sft_loss

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from support.host_reads import OnDevice, on_device

    place, cuda = Placement(torch.device(args.device), args.dtype == "bfloat16"), args.device == "cuda"
    batch, counts, handed = ragged(32, 96).to(place.device), [], []
    if not cuda:
        logprobs.by_tokens = lambda device: True
    set_out = module._set_out
    model = load_model(str(folder / "sft"), args.device)
    for tokens in (100_000, 400):
        learner = Learner(LM(model, place), OptimizerConfig(tokens_per_microbatch=tokens, lr=1e-6), 9)
        step = lambda b, learner=learner: learner.update(b, lambda lp, m: sft_loss(lp, m.response_mask), 999)  # noqa: E731
        step(batch)  # what is found out once is found
        micro = len(list(learner.lm.micro_batches(batch)))
        handed = []
        module._set_out = lambda m, q, *a, handed=handed, **k: (
            handed.append(tuple(q.shape)) or set_out(m, q, *a, **k)
        )
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                step(batch)
            torch.cuda.set_sync_debug_mode("default")
            counts.append((micro, sum("synchroniz" in str(w.message) for w in said)))
        else:
            OnDevice.found.clear()
            step(on_device(batch))
            counts.append((micro, sum(OnDevice.found.values())))
        module._set_out = set_out
    (few, least), (many, most) = counts
    return [
        row("F13", f"times that the host waits in a step of {few} and of {many} micro-batches", f"{least} and {most}",
            "the same", most == least),
        row("F1", f"shapes handed to attention in a step of {many} micro-batches", len({*handed}), "", None),
    ]  # fmt: skip


def random_state(folder: Path, args: argparse.Namespace) -> list[dict]:
    """F6: a checkpoint of a machine with other GPUs; F11: shared memory."""
    from openprime.run.checkpoint import random_state as state_of
    from openprime.run.checkpoint import restore_random_state

    state = state_of()
    restore_random_state(state)
    one = len(state["cuda"]) == 0 or state["cuda"].dim() == 1
    free = shutil.disk_usage("/dev/shm").free / GiB if Path("/dev/shm").is_dir() else 0.0
    return [row("F6", "a checkpoint has the random state of one GPU", one, "True", one),
            row("F11", "free in /dev/shm", f"{free:.1f} GiB", "else weights go through `out`", None)]  # fmt: skip


def padded(folder: Path, args: argparse.Namespace) -> list[dict]:
    """F9: what a micro-batch of a model that does not pack holds on several ranks."""
    import torch

    from openprime.models import lm

    lm.CPU_TOKENS = 10**9
    drawn = torch.empty(1024).log_normal_(6.6, 0.7, generator=torch.Generator().manual_seed(0))
    lengths = drawn.clamp(60, 3072).long() + 200
    held = {}
    for name in (False, True):
        parts = lm.cut(lengths, 16384, torch.arange(1024) // 4, padded=name)
        held[name] = [int(lengths[rows].max()) * len(rows) for rows in parts]
    said = f"{max(held[True]):,}, {len(held[True])} of them (before {max(held[False]):,}, {len(held[False])})"
    return [
        row(
            "F9",
            "padded tokens of a micro-batch of 16,384, at most",
            said,
            "16,384",
            max(held[True]) <= 16384,
        )
    ]


def shards(folder: Path, args: argparse.Namespace) -> list[dict]:
    """F15: one process in shares (FSDP2 with NCCL, a distributed checkpoint, offload) beside one that is whole."""
    import torch
    import torch.distributed as dist

    from openprime.config import OptimizerConfig
    from openprime.models.hub import named_tensors
    from openprime.models.lm import LM
    from openprime.models.placement import Placement
    from openprime.models.sharding import load_trained
    from openprime.prime.learner import Learner
    from openprime.prime.losses import sft_loss
    from openprime.run.checkpoint import load_checkpoint, save_checkpoint

    cuda, device, rows = args.device == "cuda", torch.device(args.device), []
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    batch = ragged(8, 96).to(device)
    for bfloat16 in (False, True):
        for recompute in (False, True):
            found = []
            places = [Placement(device, bfloat16), Placement(device, bfloat16, shard=True)]
            if cuda:
                places.append(Placement(device, bfloat16, cpu_offload=True, shard=True))
            for place in places:
                model = load_trained(str(folder / "small"), place)
                config = OptimizerConfig(lr=1e-4, gradient_checkpointing=recompute)
                learner = Learner(LM(model, place), config, 9)
                done = [
                    learner.update(batch, lambda lp, m: sft_loss(lp, m.response_mask), 500) for _ in range(2)
                ]
                if place.shard:
                    save_checkpoint(folder / "shards", 1, {"learner": learner.state()}, 1)
                    learner.restore(load_checkpoint(folder / "shards" / "step-000001")["learner"])
                whole = {k: t.detach().float().cpu().clone() for k, t in named_tensors(model)}
                found.append((done[1].loss, whole))
            for place, (loss, whole) in list(zip(places, found, strict=True))[1:]:
                gap = max(float((whole[k] - t).abs().max()) for k, t in found[0][1].items())
                bound = 5e-4 if bfloat16 or cuda else 0.0
                how = f"{'bfloat16' if bfloat16 else 'float32'}{', recomputed' * recompute}"
                what = f"in shares{', offloaded' * place.cpu_offload}, {how}: weights after two updates"
                said = f"{gap:.1e} apart, loss {loss - found[0][0]:+.1e}"
                rows.append(row("F15", what, said, f"at most {bound:g}", gap <= bound))
    dist.destroy_process_group()
    return rows


def ragged(rows: int, width: int):
    """A batch of random tokens: prompts of 8, responses that end between the middle and `width`."""
    import torch

    from openprime.types import Batch

    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(width // 2, width + 1, (rows,), generator=g)
    places = torch.arange(width)[None]
    mask = (places >= 8) & (places < lengths[:, None])
    ids, group = torch.randint(500, (rows, width), generator=g), torch.arange(rows) // 4
    ids[:, :8] = ids[group * 4, :8]
    nothing = torch.zeros(rows, width)
    return Batch(ids, mask, lengths, torch.arange(rows) % 2.0, group, nothing, torch.zeros_like(mask))


def logprobs(folder: Path, args: argparse.Namespace) -> list[dict]:
    """Log-probabilities and the gradient's norm of a batch, in both precisions, against the CPU's float32."""
    import torch

    from openprime.models.hub import load_model
    from openprime.models.logprobs import token_logprobs
    from openprime.models.placement import Placement

    vocabulary = SHAPES[args.shape].vocabulary
    ids = torch.randint(vocabulary, (2, 64), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, :8] = False

    def measured(device: str, bfloat16: bool) -> tuple[torch.Tensor, float]:
        model = load_model(str(folder / "sft"), device).eval()
        with Placement(torch.device(device), bfloat16).autocast():
            values = token_logprobs(model, ids.to(device), mask.to(device))
        values.sum().backward()
        return values.detach().cpu()[mask], float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9))

    (exact, norm), rows = measured("cpu", False), []
    for bfloat16, bound, far in ((False, 1e-3, 0.01), (True, 0.05, 0.1)):
        values, own = measured(args.device, bfloat16)
        gap, off = float((values - exact).abs().mean()), own / norm - 1
        said = f"{gap:.1e} nats on average, norm {off:+.2%}"
        what = f"log-probabilities in {'bfloat16' if bfloat16 else 'float32'} against the CPU's float32"
        rows.append(row("F2", what, said, f"below {bound}, {far:.0%}", gap < bound and abs(off) < far))
    return rows


def liger(folder: Path, args: argparse.Namespace) -> list[dict]:
    """F12: Liger's kernels beside transformers' modules: against float32, and the time of an update."""
    import torch

    from openprime.config import OptimizerConfig
    from openprime.models.hub import load_model
    from openprime.models.liger import use_liger
    from openprime.models.lm import LM
    from openprime.models.placement import Placement
    from openprime.prime.learner import Learner
    from openprime.prime.losses import sft_loss

    place, batch, rows = Placement(torch.device(args.device), True), ragged(32, 512), []
    batch = batch.to(place.device)

    def learner(place: Placement, kernels: bool) -> Learner:
        model = load_model(str(folder / "sft"), args.device)
        if kernels:
            use_liger("sft", model)
        return Learner(LM(model, place), OptimizerConfig(lr=1e-9), 99)

    def update(own: Learner):
        return own.update(
            batch, lambda lp, micro: sft_loss(lp, micro.response_mask), int(batch.response_mask.sum())
        )

    exact, gaps = update(learner(Placement(place.device), False)), []
    for kernels in (False, True):  # the rotation stays Liger's from then on
        own = learner(place, kernels)
        done = update(own)
        gaps.append(float((done.logprobs - exact.logprobs)[batch.response_mask].abs().mean()))
        took = seconds_of(args, lambda own=own: update(own), 5)
        name = "Liger's kernels" if kernels else "transformers' modules"
        said = f"{1e3 * took:.1f} ms, norm {done.grad_norm / exact.grad_norm - 1:+.2%}, {gaps[-1]:.1e} nats"
        rows.append(row("F12", f"an update, {name}, against float32", said, "", None))
    worst = f"below {1.25 * gaps[0]:.1e}"
    rows.append(
        row("F12", "Liger's log-probabilities", f"{gaps[1]:.1e} nats", worst, gaps[1] <= 1.25 * gaps[0])
    )
    return rows


class Meter:
    """Seconds, peak memory and operations of the phases of a step; stands in for a run's clock."""

    def __init__(self, device: str, before: float) -> None:
        self.cuda, self.before = device == "cuda", before
        self.steps: list[dict[str, tuple[float, float, float]]] = []

    @contextmanager
    def phase(self, name: str):
        """Measure a block."""
        import torch

        from openprime.models.shape import DONE

        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()
        begun, worked = time.perf_counter(), DONE.flops
        yield
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        peak = torch.cuda.max_memory_allocated() if self.cuda else resident()[1]
        self.steps[-1][name] = seconds, peak - self.before, DONE.flops - worked


def settings(folder: Path, args: argparse.Namespace, algorithm: str) -> Any:
    """The run."""
    from openprime.config import RLConfig, build

    shape = SHAPES[args.shape]
    rows = shape.prompts * shape.responses
    optimizer: dict[str, Any] = {
        "tokens_per_microbatch": args.tokens,
        "gradient_checkpointing": args.recompute,
    }
    sections: dict[str, Any] = {"policy": optimizer | {"minibatch": rows, "lora": {"rank": args.lora}}}
    if algorithm == "prime":
        sections["prm"] = optimizer | {"lora": {"rank": args.lora}}
    if algorithm == "distill":
        sections["prm"] = optimizer
    values = {
        "algorithm": algorithm,
        "model": str(folder / "sft"),
        "out": str(folder / algorithm),
        "steps": args.steps,
        "device": args.device,
        "dtype": args.dtype,
        "data": {
            "source": str(folder / "prompts.jsonl"),
            "verifier": "gpu:alternate",
            "chat_template": "none",
            "max_prompt_tokens": shape.prompt_tokens[1],
        },
        "rollout": {
            "prompts": shape.prompts,
            "responses": shape.responses,
            "max_response_tokens": shape.new_tokens,
        },
        "engine": {"kind": "transformers"},  # vLLM is a part of its own
        "verify": {"workers": 1},
        "eval": {"every": 0},
        **sections,
    }
    return build(RLConfig, values)


def step_of(algorithm: str, folder: Path, args: argparse.Namespace) -> list[dict]:
    """Steps of `openprime rl`, made of its own pieces, by phase."""
    import torch

    from openprime.models.shape import measured_tflops, peak_tflops
    from openprime.plan.memory import Machine, memory_of, read_shape
    from openprime.prime.build import build
    from openprime.verifiers.pool import Pool

    config, cuda = settings(folder, args, algorithm), args.device == "cuda"
    device = torch.device(args.device)
    peak, known = peak_tflops(device)
    if not cuda:
        peak, known = measured_tflops(device, 1024), "measured: 1,024 rows squared in float32"
    meter = Meter(args.device, torch.cuda.memory_allocated() if cuda else resident()[0])
    mismatch, loose = [], 0.0
    with Pool(config.verify) as pool:
        run, policy, method, engine, rollouts, *_ = build(config, pool)
        run.clock.phase = meter.phase  # the method's clock is the run's
        for step in range(args.steps):
            meter.steps.append({})
            with meter.phase("rollout"):
                groups = rollouts.collect(step, lambda: None)
            batch, done = method.step(policy, rollouts.batch(groups).to(policy.lm.device))
            engine.load(policy.lm.tensors(), step)
            mismatch.append(done["policy/mismatch_mean"])
            if cuda and step == 0:
                torch.cuda.empty_cache()
                loose = (torch.cuda.memory_reserved() - torch.cuda.memory_allocated()) / GiB
    tokens = int(batch.response_mask.sum())
    model = read_shape(config.model)
    plan = memory_of(config, Machine(pass_rate=1.0), model, model).phases
    rows = []
    for name in PHASES:
        kept = [step[name] for step in meter.steps[1:] if name in step]
        if not kept:
            continue
        seconds = statistics.median(took for took, _, _ in kept)
        gib, planned = (
            max(held for _, held, _ in kept) / GiB,
            plan.get("sampling" if name == "rollout" else name),
        )
        use = statistics.median(flops / took for took, _, flops in kept) / peak / 1e12
        said = f"{seconds:.3f} s, {gib:.2f} GiB" + (f", {use:.1%} of the peak" if use else "")
        wanted, right = "", None
        if planned:
            plans = sum(planned.values()) / GiB
            wanted = f"planned {plans:.2f} GiB"
            right = abs(gib / plans - 1) < 0.15 if cuda else None
        rows.append(row("F18", f"{algorithm}, {name}", said, wanted, right))
        if name == "rollout":
            rows.append(row("F8", f"{algorithm}, sampling", f"{tokens / seconds:,.0f} tokens/s", "", None))
    bound = 0.2 if config.dtype == "bfloat16" or (config.dtype == "auto" and cuda) else 0.01
    said = f"{max(mismatch):.1e} nats on average"
    rows.append(
        row("F12", f"{algorithm}, sampler against trainer", said, f"below {bound}", max(mismatch) < bound)
    )
    rows.append(row("F12", "peak", f"{peak:.3g} TFLOPS", known, None))
    if cuda:
        rows.append(
            row(
                "F4b",
                "reserved and not allocated after the first step",
                f"{loose:.2f} GiB",
                "below 2",
                loose < 2,
            )
        )
    return rows


def resume(folder: Path, args: argparse.Namespace) -> list[dict]:
    """A run that is broken off and goes on, beside one that is not; whole and, on a GPU, in shares with offload."""
    from openprime.cli import main as command

    config, rows = settings(folder, args, "prime"), []
    flags = [
        "rl",
        "--model",
        config.model,
        "--device",
        args.device,
        "--dtype",
        args.dtype,
        "--eval.every",
        "0",
    ]
    flags += ["--data.source", config.data.source, "--data.verifier", config.data.verifier]
    flags += ["--data.chat-template", "none", "--data.max-prompt-tokens", str(config.data.max_prompt_tokens)]
    flags += ["--rollout.prompts", "2", "--rollout.responses", "4", "--rollout.max-response-tokens", "16"]
    flags += ["--eval-data.source", "", "--verify.workers", "1", "--save-every", "1"]
    flags += ["--engine.kind", "transformers"]
    kinds = {"whole": [], "in shares": ["--parallel.shard"]}
    if args.device == "cuda":
        kinds["in shares, offloaded"] = ["--parallel.shard", "--parallel.cpu-offload"]
    for kind, more in kinds.items():
        losses = []
        for name, parts in (("once", ["3"]), ("twice", ["2", "3"])):
            out = folder / f"{kind} {name}"
            for i, steps in enumerate(parts):
                again = ["--resume"] if i else []
                status = command([*flags, *more, "--out", str(out), "--steps", steps, *again])
                assert status == 0, f"status {status}"
            lines = (out / "metrics.jsonl").read_text().splitlines()
            losses.append([json.loads(line).get("policy/loss") for line in lines])
        one, other = losses
        same = len(one) == len(other) and all(
            (a is None) == (b is None)
            and abs((a or 0) - (b or 0)) < (1e-3 if args.device == "cuda" else 1e-9)
            for a, b in zip(one, other, strict=True)
        )
        rows.append(row("F6", f"a resumed run is the unbroken one, {kind}", same, "True", same))
    return rows


def vllm(folder: Path, args: argparse.Namespace) -> list[dict]:
    """F4, F16: vLLM beside the trainer: sleep, wake, new weights three times; restart; models without a head."""
    import torch

    from openprime.config import VLLMEngineConfig
    from openprime.engines.vllm import VLLMEngine, start_vllm
    from openprime.models.hub import load_model, load_tokenizer
    from openprime.models.logprobs import token_logprobs
    from openprime.models.placement import Placement
    from openprime.types import Prompt, Sampling

    rows, device = [], torch.device(args.device)
    place = Placement(device, args.device == "cuda")
    for kind in ("small", "gemma2"):
        name = str(folder / kind)
        model, tokenizer = load_model(name, args.device), load_tokenizer(name)
        how = VLLMEngineConfig(gpu_memory=0.3)
        start = lambda name=name: start_vllm(name, place, how, 64, 512, sleeps=True)  # noqa: E731, B023
        threads, ends = torch.get_num_threads(), frozenset({500})
        engine = VLLMEngine(start, tokenizer, ends, weights=lambda model=model: model.named_parameters())
        kept = torch.get_num_threads() == threads or args.device == "cpu"
        rows.append(row("F4b", f"{kind}: CPU threads left to the trainer", kept, "True", kept))
        head = engine.llm.llm_engine.vllm_config.model_config.head_dtype
        rows.append(
            row("F8", f"{kind}: vLLM's head gives", str(head), "torch.float32", head == torch.float32)
        )
        gaps, asleep = [], []
        for version in range(1, 5):
            if version == 4:
                engine._restart(RuntimeError("by hand"))
            else:
                engine.sleep()
                if args.device == "cuda":
                    asleep.append(torch.cuda.mem_get_info()[0] / GiB)
                with torch.no_grad():
                    for p in model.parameters():
                        p.add_(0.01 * torch.randn_like(p))
                engine.load(model.named_parameters(), version)
            (group,) = engine.generate([Prompt("0", tuple(range(5, 25)), "", None)], Sampling(8, 48), version)
            for r in group.responses:
                ids = torch.tensor([[*range(5, 25), *r.token_ids]], device=device)
                mask = torch.zeros_like(ids, dtype=torch.bool)
                mask[:, 20:] = True
                with place.autocast(), torch.no_grad():
                    own = token_logprobs(model, ids, mask)[mask].cpu()
                gaps.append(float((own - torch.tensor(r.logprobs)).abs().mean()))
            bound = 0.1 if place.bfloat16 else 1e-3
            what = f"{kind}: sampler against trainer, " + (
                "started anew" if version == 4 else f"update {version}"
            )
            finding = "F16" if version == 4 else "F4a"
            rows.append(
                row(finding, what, f"{max(gaps[-8:]):.1e} nats", f"below {bound}", max(gaps[-8:]) < bound)
            )
        if asleep:
            drift = asleep[0] - asleep[-1]
            rows.append(
                row(
                    "F4b",
                    f"{kind}: memory lost from one sleep to the next",
                    f"{drift:.2f} GiB",
                    "below 0.5",
                    drift < 0.5,
                )
            )
        del engine
    return rows


def trl(folder: Path, args: argparse.Namespace) -> list[dict]:
    """Steps of TRL's GRPO on the same work: same model, prompts, lengths and batch, one optimiser step, KL 0."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    shape = SHAPES[args.shape]
    rows = shape.prompts * shape.responses
    at_once = max(1, min(rows, args.tokens // (shape.prompt_tokens[1] + shape.new_tokens)))
    while rows % at_once:
        at_once -= 1
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        max_steps=args.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=rows // at_once,
        num_generations=shape.responses,
        max_completion_length=shape.new_tokens,
        shuffle_dataset=False,
        beta=0.0,
        learning_rate=1e-6,
        bf16=args.device == "cuda",
        use_cpu=args.device == "cpu",
        gradient_checkpointing=args.recompute,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
    )
    seconds: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_, **__) -> None:
            sync(args)
            seconds.append(time.perf_counter() - self.begun)

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "sft", dtype=torch.float32),
        reward_funcs=alternate,
        args=config,
        train_dataset=load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "sft"),
        callbacks=[Watch()],
    )
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resident()[1]
    said = f"{statistics.median(seconds[1:]):.3f} s, {peak / GiB:.2f} GiB, {at_once} rows at once"
    return [row("", "TRL's GRPO, a step (no PRM, no reference)", said, "", None)]


def files(folder: Path, args: argparse.Namespace) -> list[dict]:
    """Models with random weights, prompts, and a smaller model of each of two kinds."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    from openprime.models.tiny import build_tokenizer

    make_files(folder, SHAPES[args.shape])
    shutil.rmtree(folder / "rl")  # the same, with an end token that it does not have
    tokenizer = build_tokenizer(["a b\n"] * 9, 300)
    for name, kind in (("small", "qwen2"), ("gemma2", "gemma2")):
        config = AutoConfig.for_model(
            kind, vocab_size=512, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=64, eos_token_id=500, pad_token_id=0,
            bos_token_id=None, tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.generation_config = GenerationConfig(eos_token_id=500)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return []


PARTS: dict[str, Callable[[Path, argparse.Namespace], list[dict]]] = {
    "precision": precision,
    "attention": attention,
    "head": head,
    "reads": reads,
    "random_state": random_state,
    "padded": padded,
    "shards": shards,
    "logprobs": logprobs,
    "liger": liger,
    "prime": lambda folder, args: step_of("prime", folder, args),
    "outcome": lambda folder, args: step_of("outcome", folder, args),
    "distill": lambda folder, args: step_of("distill", folder, args),
    "resume": resume,
    "vllm": vllm,
    "trl": trl,
}
NEEDS = {"liger": "liger_kernel", "vllm": "vllm", "trl": "trl"}
"""Parts for which a bare CUDA image lacks a package."""


def show(found: dict[str, Any]) -> None:
    """The table."""
    print(f"\n{found['device']}, {found['shape']}, {found['dtype']}\n")
    print(f"{'':4}{'':6}{'check':68}{'found':46}wanted")
    for part, result in found["parts"].items():
        if "error" in result:
            print(f"{'!!':4}{'':6}{part + ' failed':68}{result['error']}")
        for line in result.get("rows", ()):
            mark = {True: "ok", False: "NO", None: ""}[line["right"]]
            print(f"{mark:4}{line['finding']:6}{line['what']:68}{line['found']!s:46}{line['wanted']}")
        print(f"{'':10}{part}: {result['seconds']:.0f} s")


def main() -> int:
    """Every part in a process of its own; status 1 where something is not as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="0.5B")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--lora", type=int, default=0, help="rank; 0 trains all weights")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    parser.add_argument("--tokens", type=int, default=16384, help="of a micro-batch")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), help="these alone, although they have been run"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gate"), help="folder for results, and to go on in"
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of a part")
    parser.add_argument("--part", choices=[*PARTS, "files"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    folder = args.out / "work"
    if args.part:
        rows = files(folder, args) if args.part == "files" else PARTS[args.part](folder, args)
        print("\n" + json.dumps(rows, default=str))
        return 0
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device: --device cpu --shape tiny runs the same code on a CPU")
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).resolve().parent  # where the verifier's workers find `alternate`
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as the command sets it
    arguments = {k: str(v) for k, v in vars(args).items() if k not in ("parts", "part", "out")}
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu: not run on a GPU",
        "torch": torch.__version__,
        "shape": args.shape,
        "dtype": args.dtype,
        "arguments": arguments,
        "sizes": asdict(SHAPES[args.shape]),
        "parts": {},
    }
    wanted = args.parts or [p for p in PARTS if p not in NEEDS or importlib.util.find_spec(NEEDS[p])]
    for part in ["files", *wanted]:
        path = args.out / f"{part}.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        anew = part in (args.parts or ()) or kept.get("arguments") != arguments or "error" in kept
        if anew:
            for left in {"resume": ["whole*", "in shares*"], "shards": ["shards"]}.get(part, [part]):
                for old in folder.glob(left):
                    shutil.rmtree(old, ignore_errors=True)
            options = [a for k, v in vars(args).items() if k in ("device", "shape", "dtype", "lora", "tokens", "steps")
                       for a in (f"--{k}", str(v))]  # fmt: skip
            options += ["--recompute"] * args.recompute
            command = [sys.executable, __file__, *options, "--out", str(args.out), "--part", part]
            begun = time.perf_counter()
            print(f"{part} ...", flush=True)
            kept = {"arguments": arguments}
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, cwd=here, env=environment, timeout=args.timeout
                )
                if done.returncode:
                    (args.out / f"{part}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
                    kept["error"] = (done.stderr.strip().splitlines() or ["?"])[-1][:300]
                else:
                    kept["rows"] = json.loads(done.stdout.splitlines()[-1])
            except subprocess.TimeoutExpired:
                kept["error"] = f"not done after {args.timeout:.0f} s"
            kept["seconds"] = time.perf_counter() - begun
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        if part != "files" or "error" in kept:
            found["parts"][part] = kept
    show(found)
    (args.out / "gate.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    results = found["parts"].values()
    return int(any("error" in r or any(line["right"] is False for line in r["rows"]) for r in results))


if __name__ == "__main__":
    raise SystemExit(main())
