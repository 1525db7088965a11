"""Lists that a cell holds as text: JSON, or as Python shows them, which is what pandas writes into a CSV."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from mint_train.errors import DataError, RowError
from mint_train.groups.examples import read_examples
from mint_train.losses.weighted_sum import open_loss
from mint_train.rows.candidates import text_column
from mint_train.rows.readers import open_data
from mint_train.rows.values import from_json, text

USER = {"role": "user", "content": 'Say "it\'s" \\ and\nthat \u00e9\x07\U0001f600'}
GOOD = {"content": "The Danube.", "role": "assistant"}
BAD = {"role": "assistant", "content": "Blue."}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {}, "strict": True}}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "find", "arguments": {"n": 1}}}],
}
SHAREGPT = [{"from": "human", "value": "Hi"}]
ROWS = [
    ("dpo", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    ("dpo", {"prompt": "Hi", "chosen": GOOD, "rejected": BAD}),
    ("dpo", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    ("dpo", {"conversations": SHAREGPT, "chosen": [GOOD], "rejected": [BAD]}),
    ("dpo", {"prompt": "Hi", "tools": [TOOL], "chosen": [CALL], "rejected": [BAD]}),
    ("dpo", {"prompt": "Hi", "history": [["a", "b"]], "output": ["x", "y"]}),
    ("dpo", {"prompt": "Hi", "completions": [{"text": "x", "score": 1.5}, {"text": "y", "score": 2}]}),
    ("kto", {"messages": [USER, GOOD], "label": "true"}),
    ("plackett-luce", {"prompt": "Hi", "completions": ["it's", 'y"'], "scores": [1, 2]}),
]


def written(path: Path, row: dict[str, Any], write: Callable[[Any], str]) -> Path:
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(row)
        lines.writerow(value if isinstance(value, str) else write(value) for value in row.values())
    return path


def values(path: Path, loss: str) -> list[Any]:
    return [example.value for example in read_examples(open_data(path), open_loss(loss, {}))]


@pytest.mark.parametrize(("loss", "row"), ROWS)
def test_what_python_shows_is_read_as_json_is(
    write_rows: Callable[..., Path], tmp_path: Path, loss: str, row: dict[str, Any]
) -> None:
    expected = values(write_rows([row]), loss)
    assert values(written(tmp_path / "json.csv", row, json.dumps), loss) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values(written(tmp_path / "python.csv", row, repr), loss) == expected


def printed(value: Any) -> str:
    """As numpy prints a list: what pandas writes of a table whose cells are arrays."""
    return str(numpy.array(value if isinstance(value, list) else [value], dtype=object))


@pytest.mark.parametrize(
    ("loss", "row"),
    [
        ("dpo", {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}),
        ("dpo", {"prompt": [USER, GOOD, USER], "chosen": "a", "rejected": "b"}),
        ("dpo", {"prompt": ["Hi", "there"], "chosen": "a", "rejected": "b"}),
        ("kto", {"messages": [USER, GOOD], "label": "true"}),
        ("dpo", {"conversations": SHAREGPT * 2, "chosen": "a", "rejected": "b"}),
        ("plackett-luce", {"prompt": "Hi", "completions": ["x", "y"], "scores": [1, 2]}),
    ],
)
def test_what_numpy_prints_is_never_trained(tmp_path: Path, loss: str, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="list"):
        values(written(tmp_path / "numpy.csv", row, printed), loss)


@pytest.mark.parametrize(
    "said",
    [
        str([USER, GOOD])[:-20],
        f"[{USER}\n {GOOD}]",
        "{'messages': array([{'role': 'user', 'content': 'Hi'}], dtype=object)}",
        "[{'at': datetime.date(2024, 1, 1), 'role': 'user', 'content': 'Hi'}]",
        json.dumps(USER),
    ],
)
def test_messages_that_cannot_be_read_are_no_text(said: str) -> None:
    with pytest.raises(RowError, match=r"holds messages or a list as text .*json\.dumps"):
        text(said, "prompt")


@pytest.mark.parametrize(
    "said",
    [
        "[1](http://x) is 'a' \\d link",
        "{'a': 1}",
        "[x for x in 'ab']",
        "['a' 'b'] is what?",
        f"{[USER]} - what does this API call do?",
        '{"task": "translate", "messages": [{"role": "user", "content": "Hi"}]}',
        '{"from": "EUR", "value": 3}',
        "{'\\d': True}",
        "['\\N{DASH}']",
        "['\\UFFFFFFFF']",
    ],
)
def test_a_text_that_begins_with_a_bracket_stays_one(said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_json(said)
        assert text(said, "prompt") == said


def test_a_key_that_stands_twice_is_refused_in_python_too() -> None:
    with pytest.raises(RowError, match='"role" stands twice'):
        from_json("[{'role': 'user', 'role': 'system', 'content': 'Hi'}]", "prompt")


def test_space_before_a_list_changes_nothing(write_rows: Callable[..., Path]) -> None:
    row = {"prompt": f" {json.dumps([USER])}", "chosen": f"\n{[GOOD]}", "rejected": "b"}
    (value,) = values(write_rows([row]), "dpo")
    assert (value.prompt, value.chosen) == ([USER], "The Danube.")
    assert text_column(" [1]") == [{"role": "assistant", "content": " [1]"}]
