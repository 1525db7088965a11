"""Prompts that stand in whole conversations: what is read of them, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mint_train.errors import DataError
from mint_train.groups.prompts import Prompts, read_prompts
from mint_train.settings.model import Settings

SYSTEM = {"role": "system", "content": "Be kind."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def prompts_of(row: dict[str, Any]) -> Prompts:
    return read_prompts([row], Settings(loss="any"))


YES, NO = [user("Hi."), assistant("Yes.")], [user("Hi."), assistant("No.")]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"chosen": YES, "rejected": NO}, [user("Hi.")]),
        ({"chosen": json.dumps(YES), "rejected": json.dumps(NO)}, [user("Hi.")]),
        ({"chosen": "\n\nHuman: Hi.\n\nAssistant: Yes."}, [user("Hi.")]),
        ({"prompt": "Hi.", "chosen": [SYSTEM, *YES], "rejected": [SYSTEM, *NO]}, [SYSTEM, user("Hi.")]),
        ({"chosen": YES, "rejected": NO, "messages": YES}, [user("Hi.")]),
        ({"conversation_a": YES, "conversation_b": NO, "winner": "model_a"}, [user("Hi.")]),
        ({"messages": [*YES, user("Why?"), assistant("So.")], "label": True}, [*YES, user("Why?")]),
        ({"prompt": "Hello?", "example": YES, "other": [user("Ho."), assistant("No.")]}, "Hello?"),
        ({"prompt": "Hello?", "example": YES}, "Hello?"),
        ({"prompt": "Hi", "example": YES}, "Hi"),
        ({"prompt": "Hi.", "messages": YES}, [user("Hi.")]),
        ({"problem": "Hi.", "solution": "Yes.", "messages": YES}, [user("Hi.")]),
        ({"prompt": ["Hello?"]}, "Hello?"),
    ],
)
def test_a_prompt_is_what_conversations_begin_with(row: dict[str, Any], prompt: object) -> None:
    (found,) = prompts_of(row).rows
    assert found.prompt == prompt


def test_the_form_is_said() -> None:
    assert prompts_of({"chosen": YES, "rejected": NO}).described.endswith(
        "chat messages, answers sharing their prompt"
    )
    assert prompts_of({"messages": YES}).described.endswith("chat messages, the prompt of the last one")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Another.", "chosen": YES, "rejected": NO}, 'field "prompt": is not read'),
        ({"chosen": YES, "rejected": [user("Ho."), assistant("No.")]}, 'field "prompt": missing'),
        ({"past": YES, "chosen": [*YES, user("Why?"), assistant("So.")]}, 'field "prompt": missing'),
        ({"chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}, 'field "prompt": missing'),
        ({"prompt": ["Hello?", "Why?"]}, 'field "prompt": is a list of 2 texts'),
    ],
)
def test_what_conversations_do_not_say_is_refused(row: dict[str, Any], said: str) -> None:
    """No refusal advises to read an answer as a prompt."""
    with pytest.raises(DataError) as refused:
        prompts_of(row)
    assert said in str(refused.value)
    assert "prompt=chosen" not in str(refused.value)
