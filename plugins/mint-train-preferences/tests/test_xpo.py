"""XPO on two pairs with a completion of the reference: by hand, by a second writing, on bad rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pair_batches import PROMPT, completion_part, open_loss, with_prompt

from mint_train.batches.batch import Batch
from mint_train.batches.datums import build_datum
from mint_train.batches.groups import Group
from mint_train.errors import RowError, Source

POLICY = (
    ((-0.5, -1.0), (-1.0, -0.5, -2.0), (-1.5,)),
    ((-2.0,), (-1.0, -1.0), (-0.5, -0.25, -0.75)),
)
REFERENCE = (
    ((-1.0, -1.5), (-1.0, -0.5, -1.0), (-1.0,)),
    ((-1.5,), (-1.5, -1.5), (-0.25, -0.25, -0.25)),
)


def explored() -> tuple[Batch, list[torch.Tensor]]:
    """Build the batch of both rows, and the policy's logprobs: h is 1 and -1, then -0.5 and 1."""
    groups, logprobs = [], []
    for number, (sides, others) in enumerate(zip(POLICY, REFERENCE, strict=True)):
        datums = [
            build_datum(PROMPT, [100 * side + index for index in range(len(given))], None)
            for side, given in enumerate(sides)
        ]
        logprobs += [with_prompt(given, torch.float64).requires_grad_() for given in sides]
        group = Group.of(datums, Source("explored.jsonl", number + 1))
        reference = tuple(with_prompt(given, torch.float64) for given in others)
        groups.append(replace(group, reference_logprobs=reference))
    return Batch(groups), logprobs


def test_value_is_the_one_worked_by_hand() -> None:
    batch, logprobs = explored()
    value, metrics = open_loss("xpo", beta=0.5, alpha=0.1).compute(batch, logprobs, {})
    # the margins are 2 and -1.5, and each completion of the reference has the logprob -1.5
    pairs = [math.log(1 + math.exp(-0.5 * 2)), math.log(1 + math.exp(0.5 * 1.5))]
    assert float(value.detach()) == pytest.approx(sum(pairs) / 2 - 0.15, abs=1e-12)
    assert metrics["reference_completion"] == -1.5
    assert metrics["rewards/accuracy"] == 0.5


def test_loss_and_gradient_are_those_of_a_second_writing() -> None:
    batch, logprobs = explored()
    value, _ = open_loss("xpo", beta=0.3, alpha=0.7).compute(batch, logprobs, {})
    gradients = torch.autograd.grad(value, logprobs)
    leaves = [completion_part(side).detach().requires_grad_() for side in logprobs]
    losses = []
    for (w, l, q), others in zip((leaves[:3], leaves[3:]), REFERENCE, strict=True):  # noqa: E741
        z = 0.3 * (w.sum() - sum(others[0]) - l.sum() + sum(others[1]))
        losses.append(-torch.log(1 / (1 + torch.exp(-z))) + 0.7 * q.sum())
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(completion_part(gradient), other, rtol=1e-10, atol=1e-10)


ROW = {"prompt": "Say one.", "chosen": "one", "rejected": "two", "reference_completion": "two"}


def test_the_reference_may_have_written_one_of_the_pair() -> None:
    example = open_loss("xpo").parse_row(ROW)
    assert (example.pair.rejected, example.of_reference) == ("two", "two")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_completion": None}, "reference_completion.*: is missing"),
        ({"reference_completion": 3}, "reference_completion"),
        ({"chosen": "two"}, "equal"),
    ],
)
def test_a_bad_row_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(RowError, match=message):
        open_loss("xpo").parse_row(ROW | change)
