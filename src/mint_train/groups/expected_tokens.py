"""The tokens that a run will send, by kind: known from its data and its settings before anything is sent."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mint_train.groups.order import Order, epoch_order
from mint_train.groups.reference_blocks import first_uses, groups_of
from mint_train.groups.step_count import is_due, steps_per_epoch, times_due
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
    held_out: int
    """The tokens of all held-out groups."""
    prompts: Sequence[int]
    """The tokens of each prompt of `--sample-prompts`."""
    referenced: bool
    """Whether the loss needs a reference's logprobs of the groups that steps use, and of those held out."""
    linear: bool = False
    """Whether the loss is linear in the logprobs, so that its steps may take one pass, without a forward."""

    @property
    def at_most(self) -> Sequence[str]:
        """The kinds of which fewer tokens may be sent than these say."""
        return (*AT_MOST, "forward") if self.linear else AT_MOST

    def before_first_step(self) -> Counter[str]:
        """Count what is sent before the first step, and the reference, which may be sent as steps need it."""
        return Counter({"reference": self._of_reference() * self.referenced}) + self._sent(0, lambda _: 1)

    def _of_reference(self) -> int:
        blocks = first_uses(self.order, self.steps)
        indices = (index for block in blocks for index in groups_of(block, len(self.trained)))
        return sum(self.trained[index] for index in indices) + self.held_out

    def of_step(self, step: int) -> Counter[str]:
        """Count what a step sends, with the evaluation and the samples that are due after it."""
        tokens = sum(self.trained[index] for index in self.order.step(step))
        return self._sent(tokens, lambda every: is_due(step, self.steps, every))

    def after(self, step: int) -> Counter[str]:
        """Count what is sent after a step, or in all (0)."""
        rest = self._until(self.steps) - self._until(step)
        return rest if step else self.before_first_step() + rest

    def steps_within(self, most: int) -> int:
        """Count the steps that `most` tokens are enough for."""
        left = most - self.before_first_step().total()
        epoch = steps_per_epoch(self.order.groups, self.order.batch_size)

        def sent(step: int) -> int:
            return self._until(step).total()

        # whole epochs first: what they send is known without their order
        whole = bisect_right(range(0, self.steps + 1, epoch), left, key=sent) - 1
        if whole < 0:
            return 0
        begun = range(whole * epoch, min((whole + 1) * epoch, self.steps + 1))
        return begun[bisect_right(begun, left, key=sent) - 1]

    def _until(self, step: int) -> Counter[str]:
        """Count what the first steps send, as many as `step` says, without a look at each."""
        epoch, taken = divmod(step, steps_per_epoch(self.order.groups, self.order.batch_size))
        tokens = tokens_of_epochs(self.order, epoch, self.trained)
        if taken:
            listed = epoch_order(self.order, epoch)[: taken * self.order.batch_size]
            tokens += sum(self.trained[index] for index in listed)
        return self._sent(tokens, lambda every: times_due(step, self.steps, every))

    def _sent(self, tokens: int, times: Callable[[int | None], int]) -> Counter[str]:
        """Count what training on tokens sends, and what is due as often as `times` says of each `every`."""
        asked = self.settings
        samplings = times(asked.sample_every or asked.save_every)
        return +Counter(
            {
                "forward": tokens,
                "backward": tokens,
                "evaluation": self.held_out * times(asked.eval_every),
                "prompts": sum(self.prompts) * samplings,
                "sampled": len(self.prompts) * asked.sample_tokens * samplings,
            }
        )


def tokens_of_epochs(order: Order, epochs: int, tokens: Sequence[int]) -> int:
    """Add up the tokens of the first epochs of an order, by those of each group."""
    if not order.shares:
        return epochs * sum(tokens)
    total = 0
    for share in order.shares:
        passes, begun = divmod(epochs * share.per_epoch, len(share.groups))
        total += passes * sum(tokens[index] for index in share.groups)
        total += sum(tokens[index] for index in share.one_pass(order.seed, passes)[:begun])
    return total
