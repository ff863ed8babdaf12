"""From a configuration to the parts of a run: everything that can be wrong is found before any long work."""

import importlib
from collections.abc import Mapping

import torch
from transformers import PreTrainedTokenizerBase

from openprime.config import ALGORITHMS, RLConfig
from openprime.data.collate import tokens_containing
from openprime.data.readers import identity, read_prompts
from openprime.engines.make import make_engine
from openprime.models.checks import check_rows
from openprime.models.hub import load_tokenizer
from openprime.models.lm import Loader
from openprime.models.placement import Placement
from openprime.models.shape import peak_tflops
from openprime.prime.learner import Learner
from openprime.prime.methods import Method
from openprime.prime.rollouts import PromptStream, Rollouts, RolloutsAhead
from openprime.run.console import Clock
from openprime.run.launch import same_prompts, workers
from openprime.run.run import Run
from openprime.types import Engine, Prompt, Verifier
from openprime.verifiers.pool import Pool


def judges(config: RLConfig, verifiers: Mapping[str, Verifier] | None) -> Pool:
    """The verifiers of this rank, which has joined the others: with servers the first one verifies for all."""
    return Pool(config.verify, workers(config.verify, config.engine.kind == "server"), verifiers)


def build(
    config: RLConfig, pool: Pool
) -> tuple[Run, Learner, Method, Engine, Rollouts | RolloutsAhead, list[Prompt], PreTrainedTokenizerBase]:
    """(run, policy, method, engine, rollouts, held-out prompts, tokenizer): pi = phi = ref = the SFT model."""
    notes = config.check()
    method_of = find_method(config.algorithm)
    place = Placement.of(config)
    pool.prepare(d.verifier for d in (config.data, config.eval_data) if d.source and not d.verifier_field)
    tokenizer = load_tokenizer(config.model)
    data = read_prompts(config.data, tokenizer)
    notes += data.notes
    prompts = pool.admit(data.prompts, notes.append, training=True)
    held_out = read_prompts(config.eval_data, tokenizer).prompts if config.eval_data.source else []
    held_out = pool.admit(held_out, notes.append) if held_out else []
    same_prompts(prompts + held_out)
    if pool.sandbox:
        notes.append(f"programs run in the sandbox: {pool.sandbox}")

    torch.manual_seed(config.seed)
    models, rollout, settings = Loader(place), config.rollout, config.policy
    minibatches = -(-rollout.prompts * rollout.responses // settings.minibatch)
    updates = config.steps * settings.epochs * minibatches
    policy = Learner(models.trained(config.model, "policy", settings, rollout.temperature), settings, updates)
    asked = [(prompt.token_ids,) for prompt in prompts + held_out]
    response = max(rollout.max_response_tokens, config.eval.max_response_tokens)
    where, shorter = config.data.source, "lower rollout.max_response_tokens or data.max_prompt_tokens"
    check_rows(policy.lm.model, tokenizer, asked, where, shorter, response)
    policy.lm.try_save(tokenizer, config.data)
    clock = Clock()
    clock.peak, known = peak_tflops(place.device)
    if clock.peak:
        notes.append(f"speed/*_mfu is the share of {clock.peak:,.0f} TFLOPS, {known}")
    method = method_of.build(config, models, tokenizer, clock)
    notes += models.notes
    longest = max(len(prompt) for (prompt,) in asked) + response
    engine = make_engine(config, tokenizer, rollout.sequences, longest, policy.lm)
    rollouts = Rollouts(
        engine,
        PromptStream(prompts, config.seed),
        pool,
        rollout,
        config.filter,
        config.seed,
        tokens_containing(tokenizer, config.step_delimiter) if config.step_delimiter else frozenset(),
    )
    ahead = (
        RolloutsAhead(rollouts, rollout.max_staleness, config.steps) if rollout.max_staleness else rollouts
    )
    data = (identity(prompt.id, prompt.answer, prompt.token_ids) for prompt in prompts)
    run = Run(config, "rl", clock, data)  # last: what is wrong is said before a folder is made
    for note in notes:
        run.note(note)
    sizes = f"{len(prompts):,} prompts, {len(held_out):,} held out, {config.steps:,} steps"
    run.note(f"{policy.parameters:,} trained parameters, {sizes}", "")
    return run, policy, method, engine, ahead, held_out, tokenizer


def find_method(name: str) -> type[Method]:
    """The class that ALGORITHMS names."""
    module, _, found = ALGORITHMS[name][1].partition(":")
    return getattr(importlib.import_module(module), found)
