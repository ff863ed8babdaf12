"""`openprime sft`: supervised fine-tuning on demonstrations, or training a small model from nothing."""

import math
import random
from contextlib import closing
from functools import lru_cache

import torch
from torch import Tensor

from openprime.config import SFTConfig
from openprime.data.collate import collate_demonstrations
from openprime.data.readers import read_demonstrations, read_prompts, read_texts
from openprime.engines.transformers import TransformersEngine
from openprime.evaluation.command import measure
from openprime.models.hub import end_tokens, load_tokenizer, pad_token, pick_device
from openprime.models.lora import Loader
from openprime.models.sharding import sampling_model, shard
from openprime.models.tiny import build_model, build_tokenizer
from openprime.prime.learner import Learner
from openprime.prime.losses import sft_loss
from openprime.run.console import Bar, Interrupted, Signals
from openprime.run.launch import joined, workers
from openprime.run.run import Run
from openprime.types import Batch, NonFiniteError, RunError
from openprime.verifiers.pool import Pool


def train(config: SFTConfig) -> None:
    """Train on demonstrations. Leaves metrics, checkpoints and `model` in `config.out`."""
    config.check()
    with joined(config), Pool(config.verify, workers(config.verify)) as pool:
        train_with(pool, config)


def train_with(pool: Pool, config: SFTConfig) -> None:
    """`train` with verifiers at hand."""
    device = pick_device(config.device)
    held = config.eval_data
    pool.prepare([held.verifier] if held.source and not held.verifier_field else [])
    new = config.new_model
    if config.model == "new":
        tokenizer = build_tokenizer(read_texts(config.data), new.vocab_size)
        model = build_model(tokenizer, new.hidden_size, new.layers, new.heads, new.max_positions, config.seed)
    else:
        tokenizer, model = load_tokenizer(config.model), None
    data = read_demonstrations(config.data, tokenizer, config.max_tokens)
    notes: list[str] = []
    held_out = pool.admit(read_prompts(held, tokenizer).prompts, notes.append) if held.source else []

    run = Run(config, "sft")
    for note in notes:
        run.console.print(f"note: {note}", highlight=False)
    if data.dropped_long:
        run.console.print(
            f"{data.dropped_long} demonstrations are over max_tokens={config.max_tokens}: dropped"
        )
    torch.manual_seed(config.seed)
    bfloat16, offload, adapter = config.dtype == "bfloat16", config.parallel.cpu_offload, ""
    if model is None:
        model, adapter = Loader(device, bfloat16, offload).trained(config.model, "sft", config.optimizer.lora)
    else:
        model.to(device)  # pyright: ignore[reportArgumentType]
        shard(model, device, bfloat16, offload)
    count = len(data.rows)
    steps = max(1, math.ceil(count * config.epochs / config.batch))
    learner = Learner(model, config.optimizer, steps, bfloat16, adapter=adapter)
    sampler = sampling_model(model, device, bfloat16) if held_out else model
    engine = TransformersEngine(sampler, tokenizer, end_tokens(model, tokenizer), config.sequences, bfloat16)
    parameters = sum(p.numel() for p in learner.trained.values())
    run.console.print(
        f"{parameters:,} trained parameters, {count:,} demonstrations, {steps} steps", highlight=False
    )

    restored = run.load()
    if restored:
        learner.restore(restored["learner"])

    def loss(logprobs: Tensor, micro: Batch, rows: Tensor) -> Tensor:
        return sft_loss(logprobs, micro.response_mask)

    with Signals() as signals, closing(run), Bar(run.console, "sft", steps, run.step) as bar:
        for step in range(run.step + 1, steps + 1):
            chosen = [data.rows[i] for i in rows_of_step(count, config.batch, step, config.seed)]
            batch = collate_demonstrations(chosen, pad_token(tokenizer)).to(device)
            tokens = int(batch.response_mask.sum())
            with run.clock.phase("step"):
                try:
                    done = learner.update(batch, loss, tokens)
                except NonFiniteError as error:
                    raise RunError(f"step {step}: {error}. {run.way_back()} Lower optimizer.lr") from error
            last = step == steps
            metrics = {
                "sft/loss": done.loss,
                "sft/grad_norm": done.grad_norm,
                "sft/lr": done.lr,
                "sft/tokens": tokens,
            }
            if held_out and (last or (config.eval.every and step % config.eval.every == 0)):
                with run.clock.phase("evaluate"):
                    engine.load(learner.weights(), step)
                    limit = config.eval.max_response_tokens
                    metrics |= measure(engine, held_out, pool, config.eval.samples, limit, config.seed)
                bar.say(
                    f"step {step}: "
                    + "  ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k.startswith("eval/"))
                )
            metrics |= run.clock.take()
            run.log(step, metrics)
            if bar.console.is_terminal or last or step % max(1, steps // 20) == 0:
                speed = int(batch.lengths.sum()) / metrics["time/step"]
                bar.report(step, {"loss": f"{done.loss:.4f}", "tok/s": f"{speed:,.0f}"})
            stopped = signals.agree()
            if stopped or last or (config.save_every and step % config.save_every == 0):
                run.save(step, {"learner": learner.state()}, wait=bool(last or stopped))
            if stopped and not last:
                raise Interrupted(stopped)

    folder = run.export_model("model", learner.exportable(), tokenizer, config.data)
    run.console.print(f"done: {folder}")


def rows_of_step(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Demonstrations of one optimiser step: epochs in seeded orders, laid end to end."""
    picked = []
    for place in range((step - 1) * batch, step * batch):
        epoch, index = divmod(place, count)
        picked.append(_order(count, seed, epoch)[index])
    return picked


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"sft-{seed}-{epoch}").shuffle(order)
    return order
