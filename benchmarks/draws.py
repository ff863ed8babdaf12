"""Draws and prompts of a step by `filter.margin`, where each group passes the filter with one probability.

    python benchmarks/draws.py [--steps 200]

Collects batches as training does, without a model: an engine and a verifier that answer at once.
"""

import argparse
import random
from concurrent.futures import Future

from openprime.config import FilterConfig, RolloutConfig
from openprime.prime.rollouts import PromptStream, Rollouts
from openprime.types import Group, Prompt, Response, Sampling, Verdict

CASES = [(256, 0.5), (256, 0.3), (32, 0.5), (32, 0.25)]
"""Groups of a batch, and the share that passes."""
MARGINS = (0.0, 1.0, 1.5, 2.0)


class AtOnce:
    """Engine and verifiers: of a group's two responses one is right where it passes, else none."""

    remote = False

    def __init__(self, rate: float, seed: int) -> None:
        self.rate, self.coin = rate, random.Random(seed)

    def generate(self, prompts, sampling: Sampling, seed, check=None, finished=None, first=0) -> list[Group]:
        """Groups of empty texts."""
        groups = [Group(prompt, (Response((0,), (0.0,), "", False),) * 2, 0) for prompt in prompts]
        for group in groups:
            finished(group)
        return groups

    def submit(self, prompt, texts) -> list[Future]:
        """The verdicts on a group."""
        futures: list[Future] = [Future(), Future()]
        for future, outcome in zip(futures, (float(self.coin.random() < self.rate), 0.0), strict=True):
            future.set_result(Verdict(outcome, ""))
        return futures

    def require_verdicts(self, groups) -> None:
        """They are all there."""

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="batches of each case and margin")
    steps = parser.parse_args().steps
    stream = [Prompt(f"p{i}", (0,), "", "") for i in range(5000)]
    print(
        "| batch | pass rate | margin | draws a step | prompts for a group of the batch |\n|---|---|---|---|---|"
    )
    for wanted, rate in CASES:
        for margin in MARGINS:
            world = AtOnce(rate, 0)
            how = RolloutConfig(prompts=wanted, responses=2), FilterConfig(margin=margin)
            rollouts = Rollouts(world, PromptStream(stream, 0), world, *how, seed=0)  # type: ignore[arg-type]
            draws = 0.0
            for step in range(1, steps + 1):
                rollouts.collect(step, lambda: None)
                draws += rollouts.metrics["rollout/draws"]
            prompts = rollouts.rollouts / 2 / steps / wanted
            print(f"| {wanted} | {rate} | {margin} | {draws / steps:.2f} | {prompts:.3f} |", flush=True)


if __name__ == "__main__":
    main()
