"""An endless, seeded, resumable stream of prompts."""

import random
from collections import deque

from openprime.types import Prompt, UserError


class PromptStream:
    """Epochs of the data set, each in an order that depends on (seed, epoch) alone; put-back prompts come first."""

    def __init__(self, prompts: list[Prompt], seed: int) -> None:
        if not prompts:
            raise UserError("a stream needs at least one prompt")
        self.prompts, self.seed = prompts, seed
        self.epoch, self.cursor = 0, 0
        self.returned: deque[int] = deque()
        self._index = {prompt.id: i for i, prompt in enumerate(prompts)}
        self._order = self._shuffled()

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts."""
        taken = []
        while len(taken) < count:
            if self.returned:
                taken.append(self.prompts[self.returned.popleft()])
                continue
            if self.cursor == len(self._order):
                self.epoch, self.cursor = self.epoch + 1, 0
                self._order = self._shuffled()
            taken.append(self.prompts[self._order[self.cursor]])
            self.cursor += 1
        return taken

    def put_back(self, prompts: list[Prompt]) -> None:
        """Return unused prompts; they are the next to be taken, in this order."""
        self.returned.extendleft(self._index[prompt.id] for prompt in reversed(prompts))

    def state(self) -> dict:
        """What a checkpoint keeps (trap 10)."""
        return {
            "epoch": self.epoch,
            "cursor": self.cursor,
            "returned": list(self.returned),
            "size": len(self.prompts),
        }

    def restore(self, state: dict) -> None:
        """Go on from `state()`; the data must be the same."""
        if state["size"] != len(self.prompts):
            raise UserError(
                f"the checkpoint was made with {state['size']} prompts, the data now has {len(self.prompts)}: "
                "resume with the data that the run began with"
            )
        self.epoch, self.cursor, self.returned = state["epoch"], state["cursor"], deque(state["returned"])
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        order = list(range(len(self.prompts)))
        random.Random(f"stream-{self.seed}-{self.epoch}").shuffle(order)
        return order
