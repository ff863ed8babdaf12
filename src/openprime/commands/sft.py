"""`openprime sft`: supervised fine-tuning on demonstrations, or training a small model from nothing."""

import math
import random
from functools import lru_cache

import torch
from torch import Tensor

from openprime.config import SFTConfig
from openprime.data.collate import collate_demonstrations
from openprime.data.readers import identity, read_demonstrations, read_prompts, read_texts
from openprime.engines.transformers import TransformersEngine
from openprime.models.checks import check_rows
from openprime.models.hub import end_tokens, load_tokenizer
from openprime.models.lm import LM, Loader
from openprime.models.placement import Placement
from openprime.models.sharding import sampling_model, shard
from openprime.models.tiny import build_model, build_tokenizer
from openprime.prime.learner import Learner
from openprime.prime.losses import sft_loss
from openprime.prime.rollouts import accuracy
from openprime.run.launch import joined, workers
from openprime.run.run import Run
from openprime.types import Batch, Metrics
from openprime.verifiers.pool import Pool


def train(config: SFTConfig) -> None:
    """Train on demonstrations. Leaves metrics, checkpoints and `model` in `config.out`."""
    config.check()
    with joined(config), Pool(config.verify, workers(config.verify)) as pool:
        train_with(pool, config)


def train_with(pool: Pool, config: SFTConfig) -> None:
    """`train` with verifiers at hand."""
    place, held, new = Placement.of(config), config.eval_data, config.new_model
    pool.prepare([held.verifier] if held.source and not held.verifier_field else [])
    if config.model == "new":
        tokenizer = build_tokenizer(read_texts(config.data), new.vocab_size)
        model = build_model(tokenizer, new.hidden_size, new.layers, new.heads, new.max_positions, config.seed)
    else:
        tokenizer, model = load_tokenizer(config.model), None
    data = read_demonstrations(config.data, tokenizer, config.max_tokens)
    notes = data.notes
    held_out = pool.admit(read_prompts(held, tokenizer).prompts, notes.append) if held.source else []

    torch.manual_seed(config.seed)
    if model is None:
        models = Loader(place)
        lm = models.trained(config.model, "sft", config.optimizer)
        notes += models.notes
    else:
        model.to(place.device)  # pyright: ignore[reportArgumentType]
        shard(model, place)
        lm = LM(model, place)
    known, shorter = (lm.model, tokenizer), "lower max_tokens, over which rows are dropped"
    check_rows(*known, ((row.prompt_ids, row.response_ids) for row in data.rows), config.data.source, shorter)
    asked = [(prompt.token_ids,) for prompt in held_out]
    check_rows(*known, asked, held.source, "lower eval.max_response_tokens", config.eval.max_response_tokens)
    lm.try_save(tokenizer, config.data)
    count = len(data.rows)
    steps = math.ceil(round(config.epochs * math.ceil(count / config.batch), 6))
    learner = Learner(lm, config.optimizer, steps)
    sampler = sampling_model(lm.model, place) if held_out else lm.model
    engine = TransformersEngine(sampler, place, tokenizer, end_tokens(lm.model, tokenizer), config.sequences)
    if held_out and sampler is lm.model:
        engine.try_out(remedy="leave eval_data.source empty")
    seen = (identity(row.prompt_ids, row.response_ids) for row in data.rows)
    run = Run(config, "sft", data=seen)  # last: what is wrong is said before a folder is made
    for note in notes:
        run.note(note)
    run.note(f"{learner.parameters:,} trained parameters, {count:,} demonstrations, {steps} steps", "")
    evaluation = held_out, config.eval.samples, config.eval.max_response_tokens, config.seed

    def loss(logprobs: Tensor, micro: Batch) -> Tensor:
        return sft_loss(logprobs, micro.response_mask)

    def headline(metrics: Metrics) -> dict[str, str]:
        speed = int(batch.lengths.sum()) / metrics["time/step"]
        return {"loss": f"{metrics['sft/loss']:.4f}", "tok/s": f"{speed:,.0f}"}

    def evaluate(step: int) -> None:
        with run.measuring("evaluate"):
            engine.load(learner.lm.tensors(), step)
            run.log(accuracy(engine, pool, *evaluation, run.signals.check))

    with run:
        run.begin({"learner": learner})
        if run.unfinished:
            with run.step(run.done):
                evaluate(run.done)
        for step in run.steps(steps, headline, lines=20):
            with run.step(step):
                chosen = [data.rows[i] for i in rows_of_step(count, config.batch, step, config.seed)]
                batch = collate_demonstrations(chosen, 0).to(lm.device)
                tokens = int(batch.response_mask.sum())
                with run.training(), run.clock.phase("step"):
                    done = learner.update(batch, loss, tokens)
                run.log({"sft/loss": done.loss, "sft/grad_norm": done.grad_norm, "sft/lr": done.lr})
                run.log({"sft/tokens": tokens})
                if held_out and run.due(config.eval.every):
                    evaluate(step)
        folder = run.export("model", lambda folder: learner.lm.save(folder, tokenizer, config.data))
        run.note(f"done: {folder}", "")


def rows_of_step(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Demonstrations of one optimiser step; an epoch takes each once, in a seeded order, and its last step is short."""
    epoch, place = divmod(step - 1, math.ceil(count / batch))
    return _order(count, seed, epoch)[place * batch : (place + 1) * batch]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"sft-{seed}-{epoch}").shuffle(order)
    return order
