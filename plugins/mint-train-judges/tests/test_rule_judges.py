"""The judges that need no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mint_train.errors import MintTrainError, OptionError, PluginError, RowError
from mint_train.judging.judge import open_judge
from mint_train.plugin import Candidates
from mint_train.testing import check_judge


def scores(
    judge: str, completions: list[str], row: dict[str, Any] | None = None, **options: Any
) -> list[Any]:
    return open_judge(judge, options).score([Candidates("How much?", completions, row or {})])[0]


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("5", "5", 1),
        ("The answer is 5.", "5", 1),
        ("2 + 3 = 5, so the **Answer: 5**", "5", 1),
        ("First 7.\n#### 1,450", "reasoning\n#### 1450.0", 1),
        (r"so \boxed{\frac{1}{2}} holds, not \boxed{\frac{1}{2}}", r"\boxed{\frac{1}{2}}", 1),
        (r"never closed \boxed{5", "5", 0),
        ("PARIS", "Paris", 1),
        ("It is not 5", "5", 0),
        ("50%", "50", 1),
        ("", "5", 0),
    ],
)
def test_exact_compares_final_answers(completion: str, answer: str, right: int) -> None:
    assert scores("exact", [completion], {"answer": answer}) == [right]


def test_exact_takes_a_column_a_pattern_and_the_case() -> None:
    assert scores("exact", ["<a>x</a>", "x"], {"gold": "x"}, column="gold", pattern="<a>(.*?)</a>") == [1, 0]
    assert scores("exact", ["Paris", "paris"], {"answer": "Paris"}, case="true") == [1, 0]


def test_exact_names_the_column_that_a_row_lacks() -> None:
    with pytest.raises(RowError, match=r'^the judge "exact": field "answer": is missing'):
        scores("exact", ["5"], {"gold": "5"})


def test_a_pattern_is_looked_for() -> None:
    assert scores("regex", ["Why?", "Because."], pattern=r"\?$") == [1, 0]
    assert scores("regex", ["12 km", "km 12 km"], pattern=r"\d+ KM", whole=True, case=False) == [1, 0]
    with pytest.raises(OptionError, match="is not a regular expression: missing"):
        scores("regex", [""], pattern="(")


def test_lengths_are_counted() -> None:
    texts = ["one", "one two", "one two three"]
    assert scores("length", texts) == [-1, -2, -3]
    assert scores("length", texts, prefer="long", unit="characters") == [3, 7, 13]
    assert scores("length", texts, prefer="near", target=2) == [-1, 0, -1]


def test_a_file_is_no_judge_but_an_option_of_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(completion): return 1")
    with pytest.raises(OptionError, match=r"mine\.py is a file; take --judge function, with the option"):
        open_judge(str(file))


def test_a_function_in_a_file_takes_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "ends_well.py"
    file.write_text("def score(completion, row):\n    return len(completion) if row else None\n")
    assert scores("function", ["a", "bc"], {"id": 1}, file=str(file)) == [1, 2]
    assert scores("function", ["a"], {}, file=str(file)) == [None]
    assert all(result.passed for result in check_judge("function", options={"file": str(file)}))


@pytest.mark.parametrize(
    ("source", "kind", "problem"),
    [
        (None, PluginError, "no such file"),
        ("def score(:", PluginError, r"broken.py:1: SyntaxError"),
        ("x = 1", PluginError, r"has no function score\(prompt, completion, row\)"),
        ("def score(text): return 1", PluginError, r"score has an argument text; it may take prompt"),
        (
            "def score(completion):\n    return 1 / 0",
            MintTrainError,
            r"failed in score at broken.py:2: ZeroDivis",
        ),
    ],
)
def test_a_broken_file_is_one_line(
    tmp_path: Path, source: str | None, kind: type[Exception], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "broken", raising=False)
    file = tmp_path / "broken.py"
    if source is not None:
        file.write_text(source)
    with pytest.raises(kind, match=problem):
        scores("function", ["a"], {}, file=str(file))


@pytest.mark.parametrize("judge", ["regex", "length"])
def test_the_kit_passes(judge: str) -> None:
    options = {"pattern": "5"} if judge == "regex" else {"prefer": "near", "target": "4"}
    assert all(result.passed for result in check_judge(judge, options=options))
