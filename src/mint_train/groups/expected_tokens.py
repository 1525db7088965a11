"""The tokens that a run will send, by kind: known from its data and its settings before anything is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mint_train.groups.order import Order
from mint_train.groups.reference_blocks import first_uses, groups_of
from mint_train.groups.step_count import is_due
from mint_train.settings.model import Settings

AT_MOST = ("reference", "sampled")
"""Kinds of which fewer tokens may be sent: another run may have asked before, a completion may end early."""


@dataclass(frozen=True)
class ExpectedTokens:
    """What a run will send. Fewer if it ends early, and more if a step fails and is repeated."""

    settings: Settings
    steps: int
    order: Order
    trained: Sequence[int]
    """The tokens of each group to train on."""
    held_out: int = 0
    """The tokens of all held-out groups."""
    prompts: Sequence[int] = ()
    """The tokens of each prompt of `--sample-prompts`."""
    referenced: bool = False
    """Whether the loss needs a reference's logprobs of the groups that steps use, and of those held out."""

    def before_first_step(self) -> Counter[str]:
        """Count what is sent before the first step, and the reference, which may be sent as steps need it."""
        return Counter({"reference": self._of_reference() * self.referenced}) + self._due_after(0)

    def _of_reference(self) -> int:
        blocks = first_uses(self.order, self.steps)
        indices = (index for block in blocks for index in groups_of(block, len(self.trained)))
        return sum(self.trained[index] for index in indices) + self.held_out

    def of_step(self, step: int) -> Counter[str]:
        """Count what a step sends, with the evaluation and the samples that are due after it."""
        tokens = sum(self.trained[index] for index in self.order.step(step))
        return Counter({"forward": tokens, "backward": tokens}) + self._due_after(step)

    def after(self, step: int) -> Counter[str]:
        """Count what is sent after a step, or in all (0)."""
        sent = Counter[str]() if step else self.before_first_step()
        for each in range(step + 1, self.steps + 1):
            sent += self.of_step(each)
        return sent

    def steps_within(self, most: int) -> int:
        """Count the steps that `most` tokens are enough for."""
        left = most - self.before_first_step().total()
        for step in range(1, self.steps + 1):
            left -= self.of_step(step).total()
            if left < 0:
                return step - 1
        return self.steps

    def _due_after(self, step: int) -> Counter[str]:
        asked, sent = self.settings, Counter[str]()
        if is_due(step, self.steps, asked.eval_every):
            sent["evaluation"] = self.held_out
        if self.prompts and is_due(step, self.steps, asked.sample_every or asked.save_every):
            sent["prompts"] = sum(self.prompts)
            sent["sampled"] = len(self.prompts) * asked.sample_tokens
        return sent
