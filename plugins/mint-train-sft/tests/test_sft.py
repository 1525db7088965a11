from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mint_train.batches.batch import Batch
from mint_train.batches.datums import DatumArrays
from mint_train.errors import ContractError, RowError
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.rendering.options import Rendering
from mint_train.rendering.renderer import Renderer
from mint_train.testing import Check, conformance_checks, make_batch, make_group, make_logprobs
from mint_train_sft.rows import FORMS, Demonstration

ReadLosses = Callable[[Path], list[float]]

LOSSES = ("sft-unpaired", "dft-unpaired")
LONG, SHORT = (-0.25, -0.5, -1.5), (-0.75,)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = message("user", "Name a river.")
TALK = [
    message("system", "Be brief."),
    message("user", "Hi"),
    message("assistant", "Hello."),
    ASKED,
    message("assistant", "The Danube."),
]


def two_demonstrations(*weights: float) -> tuple[Batch, list[torch.Tensor]]:
    """Make a batch of completions of three tokens and of one, and the policy's logprobs."""
    groups = [make_group([[3, 4, 5]]), make_group([[6]])]
    if weights:
        groups = [
            type(group)(group.datums, group.source, group.attached, weight=weight)
            for group, weight in zip(groups, weights, strict=True)
        ]
    return make_batch(*groups), make_logprobs([LONG, SHORT])


def compute(
    name: str, batch: Batch, logprobs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    return Loss.of(load_plugin(name)).evaluate(batch, logprobs, {})  # type: ignore[return-value]


def test_sft_by_hand() -> None:
    value, metrics = compute("sft-unpaired", *two_demonstrations())
    assert value.item() == pytest.approx((2.25 + 0.75) / 4, abs=1e-12)
    assert metrics == {"completion_nll": pytest.approx((0.75 + 0.75) / 2)}


def test_sft_counts_a_row_by_its_weight() -> None:
    value, _ = compute("sft-unpaired", *two_demonstrations(1.0, 3.0))
    assert value.item() == pytest.approx((2.25 + 3 * 0.75) / (3 + 3 * 1), abs=1e-12)


def test_dft_weighs_a_token_by_its_probability_and_holds_that_constant() -> None:
    batch, logprobs = two_demonstrations()
    value, metrics = compute("dft-unpaired", batch, logprobs)
    value.backward()
    said = [*LONG, *SHORT]
    assert value.item() == pytest.approx(-sum(math.exp(p) * p for p in said) / 4, abs=1e-12)
    assert metrics == {"completion_nll": pytest.approx(0.75)}
    slopes = [slope for logprob in logprobs if logprob.grad is not None for slope in logprob.grad.tolist()]
    assert [slope for slope in slopes if slope] == pytest.approx([-math.exp(p) / 4 for p in said])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("number", range(len(conformance_checks("sft-unpaired"))))
def test_it_conforms(name: str, number: int) -> None:
    checks: Sequence[Check] = conformance_checks(name)
    checks[number]()


def test_two_completions_are_no_demonstration() -> None:
    with pytest.raises(ContractError, match="demonstration 0 has 2 datums"):
        Loss.of(load_plugin("sft-unpaired")).check_batch(make_batch(make_group([[3], [4]])))


DANUBE = "The Danube."
BLUE = message("assistant", "Blue.")
GREETED = [message("assistant", "Welcome!"), *TALK[3:]]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Name a river.", "completion": DANUBE}, Demonstration("Name a river.", DANUBE)),
        ({"prompt": [ASKED], "completion": [message("assistant", DANUBE)]}, Demonstration([ASKED], DANUBE)),
        (
            {"instruction": "Name a river", "input": "in Austria", "output": DANUBE},
            Demonstration("Name a river\nin Austria", DANUBE),
        ),
        ({"question": "Name a river.", "answer": DANUBE}, Demonstration("Name a river.", DANUBE)),
        ({"problem": "Name a river.", "solution": DANUBE}, Demonstration("Name a river.", DANUBE)),
        ({"messages": TALK[3:]}, Demonstration([ASKED], DANUBE)),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Name a river."},
                    {"from": "gpt", "value": DANUBE},
                ]
            },
            Demonstration([ASKED], DANUBE),
        ),
        (
            {"messages": TALK[3:], "prompt": "Name a river.", "prompt_id": "1"},
            Demonstration([ASKED], DANUBE),
        ),
        ({"messages": [ASKED], "completion": DANUBE}, Demonstration([ASKED], DANUBE)),
        ({"messages": TALK[1:4], "completion": DANUBE}, Demonstration(TALK[1:4], DANUBE)),
        (
            {"conversation": "\n\nHuman: Name a river.\n\nAssistant: The Danube."},
            Demonstration([ASKED], DANUBE),
        ),
        (
            {"prompt": "Name a river.", "chosen": DANUBE, "rejected": "Blue."},
            Demonstration("Name a river.", DANUBE),
        ),
        (
            {"prompt": "Name a river.", "response_a": "Blue.", "response_b": DANUBE, "winner": "b"},
            Demonstration("Name a river.", DANUBE),
        ),
        (
            {"prompt": "Name a river.", "completions": ["Blue.", DANUBE], "scores": [1, 2]},
            Demonstration("Name a river.", DANUBE),
        ),
        ({"messages": json.dumps(TALK)}, Demonstration(TALK[:2], TALK[2:])),
        # the answer and its prompt stand in a conversation too
        (
            {"instruction": "Name a river.", "response": DANUBE, "conversations": TALK[3:]},
            Demonstration([ASKED], DANUBE),
        ),
        (
            {"prompt": "Name a river.", "messages": TALK[3:], "chosen": TALK[3:], "rejected": [ASKED, BLUE]},
            Demonstration([ASKED], DANUBE),
        ),
        # a conversation that is the prompt of a pair
        (
            {"conversations": [ASKED], "chosen": message("assistant", DANUBE), "rejected": BLUE},
            Demonstration([ASKED], DANUBE),
        ),
        # a greeting comes before what is asked, with a prompt beside it or without
        ({"messages": GREETED}, Demonstration(GREETED[:2], DANUBE)),
        ({"messages": GREETED, "prompt": "Name a river."}, Demonstration(GREETED[:2], DANUBE)),
        # several turns that go on from a prompt are the completion
        (
            {"prompt": "Hi", "completion": [message("assistant", "Hello."), *TALK[3:]]},
            Demonstration("Hi", [message("assistant", "Hello."), *TALK[3:]]),
        ),
        # the question contains the input's one digit, and still needs the input
        (
            {"instruction": "Add 1 to the number.", "input": "1", "output": "2"},
            Demonstration("Add 1 to the number.\n1", "2"),
        ),
        # a mask that changes nothing
        (
            {
                "messages": [
                    ASKED | {"weight": 0},
                    message("assistant", DANUBE) | {"weight": 1, "train": True},
                ]
            },
            Demonstration([ASKED], DANUBE),
        ),
        (
            {"messages": [message("system", "Be brief."), message("assistant", "Hello."), *TALK[3:]]},
            Demonstration([message("system", "Be brief."), message("assistant", "Hello."), ASKED], DANUBE),
        ),
    ],
)
def test_rows_in_all_forms(row: dict[str, Any], expected: Demonstration) -> None:
    assert FORMS.read(row).example == expected


LONGER = [
    message("user", "p one"),
    message("assistant", "b one"),
    message("user", "q two"),
    message("assistant", "c two"),
]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "text": "b"}, "completion.*missing.*--columns completion="),
        ({"prompt": "a", "completion": ["b", "c"]}, "completion.*must be one answer, not a list"),
        ({"completion": "b"}, "prompt.*missing"),
        ({"prompt": "a", "completion": " "}, "completion.*is empty"),
        ({"prompt": "a", "completion": "b", "label": False}, "label.*may change what is trained"),
        ({"prompt": "a", "completion": "b", "kto_tag": False}, "kto_tag.*is for other losses"),
        ({"prompt": "a", "completion": "b", "reward": 0.1}, "reward.*is for other losses"),
        ({"problem": "a", "solution": "Since b, c.", "answer": "d"}, "can be read in two ways"),
        ({"problem": "2+2?", "solution": "It is 2+2=4.", "answer": "4"}, "can be read in two ways"),
        # the single answer is the worse one of a pair
        ({"prompt": "a", "response": "Blue.", "chosen": DANUBE, "rejected": "Blue."}, "read in two ways"),
        (
            {"prompt": "a", "response": "Blue.", "response_a": "Blue.", "response_b": DANUBE, "winner": "b"},
            "can be read in two ways",
        ),
        ({"prompt": "a", "response": "No", "chosen": "No, that", "rejected": "c"}, "can be read in two ways"),
        ({"prompt": "a", "completion": "Blue.", "rejected": "Blue."}, "rejected.*is for other losses"),
        (
            {
                "prompt": "a",
                "messages": [message("user", "a"), BLUE],
                "chosen": "Blue.",
                "rejected": "b",
                "score_chosen": 1,
                "score_rejected": 9,
            },
            "can be read in two ways",
        ),
        ({"prompt": "Do you know?", "completion": "No idea.", "label": "no"}, "label.*may change"),
        ({"prompt": "a", "completion": "b", "is_correct": False}, "is_correct.*is for other losses"),
        ({"instruction": "p one", "output": "b one", "conversation": LONGER}, "can be read in two ways"),
        (
            {"question": "a", "reasoning_content": "Let me think.", "answer": "b"},
            "reasoning_content.*may change",
        ),
        ({"messages": [ASKED, BLUE | {"train": False}]}, "train.*would change what is trained"),
        ({"messages": [ASKED, BLUE | {"train_detail": [1]}]}, "train_detail.*would change what is trained"),
        ({"conversation": [{"input": "a", "output": "b"}]}, "conversation.*must be one answer, not a list"),
        ({"messages": TALK[:4]}, "messages.*ends with a message of the user"),
        ({"messages": [message("assistant", "b")]}, "messages.*begins with the assistant"),
        ({"prompt": "What else?", "messages": TALK}, "prompt.*may change what is trained"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "gold": "d"}, "gold.*is for other losses"),
    ],
)
def test_a_bad_row_is_refused(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        FORMS.read(row)


def trained(tokenizer: Any, rendering: Rendering) -> list[str]:
    """Return the parts of the conversation that are trained, as text."""
    loss = Loss.of(load_plugin("sft-unpaired"))
    (datum,) = loss.flatten(loss.parse_row({"messages": TALK}), Renderer(tokenizer, rendering=rendering))
    arrays = DatumArrays.of(datum)
    kept = [token if weight else 0 for token, weight in zip(arrays.targets, arrays.weights, strict=True)]
    parts: list[list[int]] = [[]]
    for token in kept:
        parts += [[]] * (not token and bool(parts[-1]))
        parts[-1] = [*parts[-1], int(token)] if token else parts[-1]
    return [tokenizer.decode(part) for part in parts if part]


def test_all_that_the_assistant_says_is_trained_or_its_last_turn(tokenizer: Any) -> None:
    assert trained(tokenizer, Rendering("template")) == ["Hello.<|im_end|>", "The Danube.<|im_end|>"]
    assert trained(tokenizer, Rendering("template", turns="last")) == ["The Danube.<|im_end|>"]
    with pytest.raises(RowError, match=r"several answers of the assistant.*--render template"):
        trained(tokenizer, Rendering("recipe"))


@pytest.mark.parametrize("form", ["recipe", "template"])
def test_the_first_loss_is_the_cross_entropy_of_the_model(
    form: str,
    run_cli: Callable[..., tuple[int, str, str]],
    write_rows: Callable[..., Path],
    read_losses: ReadLosses,
    starter_model_folder: Path,
    tokenizer: Any,
) -> None:
    rows = [{"messages": TALK if form == "template" else TALK[3:]}, {"question": "Hi", "answer": "Good day."}]
    data = write_rows(rows)
    common = ("--data", str(data), "--render", form, "--batch-size", "2", "--steps", "1")
    status, _, err = run_cli("--loss", "sft-unpaired", *common, "--output", "run")
    assert status == 0, err
    loss = Loss.of(load_plugin("sft-unpaired"))
    renderer = Renderer(tokenizer, rendering=Rendering(form))  # type: ignore[arg-type]
    model = AutoModelForCausalLM.from_pretrained(starter_model_folder, dtype=torch.float32)
    total, tokens = 0.0, 0
    for row in rows:
        arrays = DatumArrays.of(loss.flatten(loss.parse_row(row), renderer)[0])
        labels = [
            int(token) if weight else -100
            for token, weight in zip(arrays.targets, arrays.weights, strict=True)
        ]
        ids = torch.tensor([[*arrays.inputs.tolist(), int(arrays.targets[-1])]])
        count = sum(label != -100 for label in labels)
        total += count * float(model(ids, labels=torch.tensor([[-100, *labels]])).loss.detach())
        tokens += count
    assert read_losses(Path("run"))[0] == pytest.approx(total / tokens, rel=1e-5)


def test_training_on_demonstrations_learns_them(
    run_cli: Callable[..., tuple[int, str, str]], read_losses: ReadLosses
) -> None:
    status, out, err = run_cli(
        "--loss", "sft-unpaired", "--steps", "8", "--lr", "5e-3", "--output", "run", "--eval-fraction", "0.2"
    )
    assert status == 0, err
    assert "text prompts with completion" in out
    losses = read_losses(Path("run"))
    assert losses[-1] < losses[0] / 2
    assert " forward" not in out  # one pass: the gradients are known before the logprobs
