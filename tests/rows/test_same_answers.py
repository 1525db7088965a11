"""Rows that hold answers twice: read where both say the same, refused where one would be dropped."""

from __future__ import annotations

from typing import Any

import pytest

from mint_train.errors import RowError
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin

ASKED = {"role": "user", "content": "Name a river."}
GOOD, BAD = "The Danube it is.", "Blue, I believe."
PROMPT = {"prompt": "Name a river."}
PAIR = PROMPT | {"chosen": GOOD, "rejected": BAD}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def calls(name: str) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": name, "arguments": {}}}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}]


def example(loss: str, row: dict[str, Any]) -> Any:
    return Loss.of(load_plugin(loss), {"baseline": "batch"} if loss == "kto" else {}).parse_row(row)


@pytest.mark.parametrize(
    ("loss", "row"),
    [
        ("dpo", PAIR | {"chosen_response": BAD, "rejected_response": GOOD}),
        ("dpo", PAIR | {"preferred": BAD, "dispreferred": GOOD}),
        ("dpo", PAIR | {"responses": [GOOD, BAD], "scores": [1, 9]}),
        (
            "dpo",
            PROMPT
            | {"chosen": [says(GOOD, reasoning_content="So.")], "rejected": BAD}
            | {"chosen_response": [says(GOOD, reasoning_content="No.")], "rejected_response": BAD},
        ),
        ("sft-unpaired", PROMPT | {"completion": calls("look"), "response": calls("remove")}),
        (
            "sft-unpaired",
            PROMPT
            | {"completion": GOOD, "response": [says(BAD), {"role": "user", "content": "?"}, says(GOOD)]},
        ),
        ("kto", PROMPT | {"completion": GOOD, "label": True, "desirable": False}),
        ("kto", PAIR | {"completion": GOOD, "label": False}),
    ],
)
def test_answers_that_differ_or_change_places_are_two_readings(loss: str, row: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="can be read in two ways"):
        example(loss, row)


@pytest.mark.parametrize(
    ("loss", "row", "same"),
    [
        ("dpo", PAIR | {"chosen_response": GOOD, "rejected_response": BAD}, PAIR),
        ("dpo", PAIR | {"responses": [BAD, "The Rhine.", GOOD], "scores": [1, 2, 9]}, PAIR),
        ("dpo", PAIR | {"responses": ["Red.", BAD, GOOD], "scores": [1, 2, 9]}, PAIR),
        (
            "dpo",
            PROMPT
            | {"chosen": calls("look"), "rejected": BAD}
            | {"chosen_response": calls("look"), "rejected_response": BAD},
            PROMPT | {"chosen": calls("look"), "rejected": BAD},
        ),
        ("kto", PAIR | {"completion": BAD, "label": False}, PROMPT | {"completion": BAD, "label": False}),
        (
            "kto",
            {"messages": [ASKED], "completion": GOOD, "label": True},
            {"prompt": [ASKED], "completion": GOOD, "label": True},
        ),
    ],
)
def test_answers_that_stand_twice_are_read_once(loss: str, row: dict[str, Any], same: dict[str, Any]) -> None:
    assert example(loss, row) == example(loss, same)


@pytest.mark.parametrize("verdict", ["winner", "label", "preferred"])
def test_a_verdict_may_repeat_the_better_answer_and_not_the_worse(verdict: str) -> None:
    assert example("dpo", PAIR | {verdict: GOOD}) == example("dpo", PAIR)
    with pytest.raises(RowError, match=f"{verdict}.*may change what is trained"):
        example("dpo", PAIR | {verdict: BAD})


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Compute 3+4", "input": "3+4"}, "Compute 3+4"),
        ({"instruction": "Add 1 to the number.", "input": "1"}, "Add 1 to the number.\n1"),
        ({"instruction": "Translate: cat", "input": "cat"}, "Translate: cat"),
        ({"instruction": "Add it to 21", "input": "1"}, "Add it to 21\n1"),
        ({"prompt": "Q: why?\nA:", "question": "why?"}, "Q: why?\nA:"),
    ],
)
def test_a_short_text_is_said_already_where_it_stands_as_a_word(row: dict[str, Any], prompt: str) -> None:
    assert example("dpo", row | {"chosen": GOOD, "rejected": BAD}).prompt == prompt


def test_earlier_turns_are_kept_though_their_letters_occur_in_the_question() -> None:
    row = PAIR | {"prompt": "Now add 2 and 4.", "history": [["2", "4"]]}
    contents = [message["content"] for message in example("dpo", row).prompt]
    assert contents == ["2", "4", "Now add 2 and 4."]


@pytest.mark.parametrize(("trained", "read"), [(True, True), (1, True), (False, False), (0, False)])
def test_a_call_may_be_marked_as_trained_and_not_as_masked(trained: object, read: bool) -> None:
    call = {"from": "function_call", "value": '{"name": "look", "arguments": {}}', "train": trained}
    turns = [{"from": "human", "value": "Hi"}, call, {"from": "observation", "value": "Rain."}]
    row = {"conversations": [*turns, {"from": "gpt", "value": "It rains.", "train": True}]}
    if read:
        assert len(example("sft-unpaired", row).completion) == 3
    else:
        with pytest.raises(RowError, match=r"train.*would change what is trained"):
            example("sft-unpaired", row)


@pytest.mark.parametrize(
    ("loss", "row"),
    [
        ("kto", {"prompt": "p", "solution": "s"}),
        ("reinforce", {"prompt": "p", "response": "s"}),
        ("sft-unpaired", {"question": "q", "answers": {"text": ["a"]}}),
    ],
)
def test_a_loss_on_single_completions_asks_for_no_others(loss: str, row: dict[str, Any]) -> None:
    with pytest.raises(RowError) as raised:
        example(loss, row)
    assert "several answers" not in str(raised.value)
