"""PRIME's algorithm 1 by hand, from the public pieces: what `openprime rl` does, on one screen."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from openprime.config import AdvantageConfig, DataConfig, OptimizerConfig, PolicyConfig
from openprime.data.collate import collate
from openprime.data.readers import read_prompts
from openprime.engines.transformers import TransformersEngine
from openprime.models.hub import end_tokens, load_model, load_tokenizer
from openprime.models.lm import LM
from openprime.models.placement import Placement
from openprime.prime.advantages import with_advantages
from openprime.prime.learner import Learner
from openprime.prime.losses import policy_loss, prm_loss, token_weights
from openprime.prime.rewards import token_rewards
from openprime.prime.rollouts import PromptStream, accuracy, sample_and_verify
from openprime.types import Batch, Sampling
from openprime.verifiers.pool import Pool

BETA = 0.3


def clipped(logprobs: Tensor, part: Batch) -> Tensor:
    """The clipped policy loss of a micro-batch, eq. 6."""
    return policy_loss(logprobs, part.old_logprobs, part.advantages, part.weights, 0.2, 0.2).loss


def test_algorithm_1__from_its_public_pieces(model: Path):
    tokenizer = load_tokenizer(str(model))
    prompts = read_prompts(DataConfig(source="task:clock", horizon=2, limit=60), tokenizer).prompts
    pi, phi, ref = (LM(load_model(str(model))) for _ in range(3))  # line 1: all three are the SFT model
    policy = Learner(pi, PolicyConfig(lr=1e-3), total_updates=40)
    prm = Learner(phi, OptimizerConfig(lr=2e-4), total_updates=40)
    engine = TransformersEngine(pi.model, Placement(), tokenizer, end_tokens(pi.model, tokenizer))
    stream = PromptStream(prompts, seed=0)
    with Pool() as pool:
        before = accuracy(engine, pool, prompts, samples=4, max_tokens=16, seed=1)
        for step in range(40):
            groups = sample_and_verify(engine, pool, stream.take(24), Sampling(8, 16), step)  # lines 3, 4
            groups = [group for group in groups if 0 < group.accuracy < 1]  # line 5: the prompt filter
            batch = collate(groups, step_ends=frozenset(), pad_id=0)
            mask = batch.response_mask  # [B, T]
            batch = replace(batch, ref_logprobs=ref.logprobs(batch), old_logprobs=pi.logprobs(batch))
            rewards = token_rewards(phi.logprobs(batch), batch.ref_logprobs, mask, BETA)  # eq. 3
            prm.update(batch, partial(prm_loss, "ce", beta=BETA), len(batch))  # eq. 4
            batch, _ = with_advantages(replace(batch, rewards=rewards), AdvantageConfig(), 1.0, 1.0)  # eq. 5
            weights, count = token_weights(mask, "token")
            policy.update(replace(batch, weights=weights), clipped, count)  # eq. 6
            engine.load(pi.tensors(), step + 1)
        after = accuracy(engine, pool, prompts, samples=4, max_tokens=16, seed=1)
    assert after["eval/avg@4"] > 1.3 * before["eval/avg@4"], (before, after)
