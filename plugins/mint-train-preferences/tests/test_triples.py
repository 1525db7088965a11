"""TPO and TPO-L on two triples of chosen, rejected and gold: by hand, by a second writing, on bad rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from pair_batches import PROMPT, completion_part, open_loss, with_prompt

from mint_train.batches.batch import Batch
from mint_train.batches.datums import build_datum
from mint_train.batches.groups import Group
from mint_train.errors import ContractError, RowError, Source

SIDES = (
    ((-0.5, -1.0), (-1.0, -0.5, -2.0), (-1.5,)),
    ((-2.0,), (-1.0, -1.0), (-0.5, -0.25, -0.75)),
)


def triples(count: int = 3) -> tuple[Batch, list[torch.Tensor]]:
    """Build the batch of both triples, and the policy's logprobs."""
    groups, logprobs = [], []
    for number, sides in enumerate(SIDES):
        datums = [
            build_datum(PROMPT, [100 * side + index for index in range(len(given))], None)
            for side, given in enumerate(sides[:count])
        ]
        logprobs += [with_prompt(given, torch.float64).requires_grad_() for given in sides[:count]]
        groups.append(Group.of(datums, Source("triples.jsonl", number + 1)))
    return Batch(groups), logprobs


def log_sigma(x: float) -> float:
    return -math.log(1 + math.exp(-x))


# of the four gold tokens the logprobs add up to -3
WORKED = {
    "tpo": -(log_sigma(0.01 * (-1.5 + 3.5)) + log_sigma(0.01 * (-2 + 2))) / 2 + 3 / 4,
    "tpo-l": -(log_sigma(0.01 * (-0.75 + 3.5 / 3) - 0.5) + log_sigma(0.01 * (-2 + 1) - 0.5)) / 2 + 3 / 4,
}


@pytest.mark.parametrize("name", WORKED)
def test_value_is_the_one_worked_by_hand(name: str) -> None:
    batch, logprobs = triples()
    value, metrics = open_loss(name).compute(batch, logprobs, {})
    assert float(value.detach()) == pytest.approx(WORKED[name], abs=1e-12)
    assert metrics["nll"] == pytest.approx(0.75)
    assert metrics["pair_accuracy"] == 0.5


def plain(name: str, sides: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """Write both losses a second time, triple by triple."""
    losses = []
    for chosen, rejected, _ in sides:
        if name == "tpo":
            z = 0.3 * (chosen.sum() - rejected.sum())
        else:
            z = 0.3 * (chosen.mean() - rejected.mean()) - 0.5
        losses.append(torch.log(1 + torch.exp(-z)))
    return torch.stack(losses).mean() - 2 * torch.cat([gold for *_, gold in sides]).mean()


@pytest.mark.parametrize("name", WORKED)
def test_loss_and_gradient_are_the_papers(name: str) -> None:
    batch, logprobs = triples()
    value, _ = open_loss(name, beta=0.3, alpha=2.0).compute(batch, logprobs, {})
    gradients = torch.autograd.grad(value, logprobs)
    leaves = [completion_part(side).detach().requires_grad_() for side in logprobs]
    expected = plain(name, [leaves[:3], leaves[3:]])
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(completion_part(gradient), other, rtol=1e-10, atol=1e-10)


def test_a_pair_is_not_a_triple() -> None:
    with pytest.raises(ContractError, match="triple 0 has 2"):
        open_loss("tpo").check_batch(triples(2)[0])


ROW = {"prompt": "Say one.", "chosen": "one", "rejected": "two", "gold": "One."}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": None}, "gold.*: is missing"),
        ({"gold": 3}, "gold"),
        ({"gold": "two"}, "gold.*: is equal to rejected"),
        ({"gold": "one"}, "gold.*: is equal to chosen"),
        ({"chosen": "two"}, "equal"),
    ],
)
def test_a_bad_triple_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(RowError, match=message):
        open_loss("tpo").parse_row(ROW | change)
