"""Trees of replies are read whole: each turn of the user with several ranked answers is a group."""

from __future__ import annotations

from typing import Any

import pytest

from mint_train.errors import RowError
from mint_train.rows.forms import Forms
from mint_train_dpo.rows import FORMS, PreferencePair
from mint_train_ranking.rows import FORMS as RANKINGS


def asked(text: str, *replies: Any) -> dict[str, Any]:
    return {"role": "prompter", "text": text, "rank": None, "replies": list(replies)}


def answered(text: str, rank: int | None, *replies: Any) -> dict[str, Any]:
    return {"role": "assistant", "text": text, "rank": rank, "replies": list(replies)}


def said(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]


TREE = asked(
    "Which pan?",
    answered(
        "An iron pan.",
        0,
        asked("Why?", answered("Iron.", 2), answered("Alone.", None), answered("It holds heat.", 0)),
        asked("Sure?", answered("Yes.", 0)),
    ),
    answered(
        "A pan.",
        1,
        asked(
            "Which?",
            answered("None.", 1, asked("No?", answered("B.", 1), answered("A.", 0))),
            answered("One.", 0),
        ),
    ),
)


def read(prompt: Any, forms: Forms = FORMS, **columns: Any) -> list[Any]:
    return list(forms.read({"prompt": prompt, **columns}).examples)


def test_every_compared_turn_is_a_pair_with_the_dialogue_above_it() -> None:
    assert read(TREE) == [
        PreferencePair("Which pan?", "An iron pan.", "A pan."),
        PreferencePair(said("Which pan?", "An iron pan.", "Why?"), "It holds heat.", "Iron."),
        PreferencePair(said("Which pan?", "A pan.", "Which?"), "One.", "None."),
        PreferencePair(said("Which pan?", "A pan.", "Which?", "None.", "No?"), "A.", "B."),
    ]


def test_a_ranking_takes_all_ranked_answers_of_a_turn() -> None:
    rankings = read(TREE, RANKINGS)
    assert [ranking.completions for ranking in rankings][1] == ("It holds heat.", "Iron.")
    assert len(rankings) == 4


def test_a_system_prompt_stands_before_each_of_them() -> None:
    pairs = read(TREE, system="Be brief.")
    assert [pair.prompt[0] for pair in pairs] == [{"role": "system", "content": "Be brief."}] * 4


def test_a_first_turn_with_one_answer_leads_on() -> None:
    tree = asked("Hello", answered("Hi.", 0, asked("Why?", answered("So.", 1), answered("Since.", 0))))
    assert read(tree) == [PreferencePair(said("Hello", "Hi.", "Why?"), "Since.", "So.")]
    alone = asked("Hello", answered("Hi.", 0, asked("Why?", answered("So.", 0))))
    with pytest.raises(RowError, match=r"prompt\.replies.*holds 1; a ranking needs two or more"):
        read(alone)


@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        ([answered("A.", 0), answered("A, too.", 0)], r"\.replies.*all equally good"),
        ([answered("A.", 0), answered("", 1)], r"\.replies\[1\]"),
        ([answered("A.", 0), asked("B?") | {"rank": 1}], r"\.replies\[1\]\.role.*is not the assistant's"),
        ([answered("A.", 0), "B."], r"\.replies\[1\].*must be a reply with role and text"),
        ({"A": 0}, r"\.replies.*must be a list of replies"),
    ],
)
def test_a_wrong_reply_below_names_where_it_stands(replies: Any, problem: str) -> None:
    tree = asked("Hello", answered("Hi.", 0, asked("Why?") | {"replies": replies}), answered("Ho.", 1))
    with pytest.raises(RowError, match=r"prompt\.replies\[0\]\.replies\[0\]" + problem):
        read(tree)


def test_a_deep_tree_is_read() -> None:
    tree = answered("End.", 0)
    for _ in range(3000):
        tree = asked("And?", answered("Well.", 0, tree)) if tree["role"] == "prompter" else asked("So?", tree)
    with pytest.raises(RowError, match="holds 1"):
        read(tree)


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        ({}, "put the user's turn before it or into a column prompt"),
        ({"opening_question": "Hello there"}, "--columns prompt=opening_question"),
        ({"meta": {"post": "Hello there"}}, "--columns prompt=meta.post"),
    ],
)
def test_answers_without_a_prompt_say_what_to_do(columns: dict[str, Any], advice: str) -> None:
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    with pytest.raises(RowError, match=r"chosen.*begins with the assistant, and nothing says what") as raised:
        FORMS.read(sides | columns)
    assert advice in str(raised.value)
    assert str(raised.value).endswith("or leave such rows out with --on-bad-row skip")
