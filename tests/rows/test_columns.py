"""`--columns`, verdicts and labels: values read as a whole, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mint_train.errors import DataError, OptionError, RowError
from mint_train.groups.examples import read_examples
from mint_train.groups.prompts import read_prompts
from mint_train.losses.loss import Loss
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.plugins.hookspecs import hookimpl
from mint_train.rows.columns import rename
from mint_train.rows.known import known_columns, known_data_sets
from mint_train.rows.readers import open_data
from mint_train.settings.fields import parse_columns
from mint_train.settings.model import Settings

ROW = {"prompt": "p", "response_a": "x", "response_b": "y"}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("prompt=question.full_text", {"prompt": "deep"}),
        ("prompt=answers.1.text", {"prompt": "second"}),
        ("label=score>=3", {"label": True}),
        ("label=score<3", {"label": False}),
        ("label=score>3", {"label": False}),
        ("winner=score(3=a;0=b)", {"winner": "a"}),
        ("preference=score(min=4)", {"preference": 0}),
        ("preference=score(min=3)", {"preference": 3.0}),
        ("odd=a>=b", {"odd": "a name"}),
    ],
)
def test_what_stands_behind_a_field(columns: str, expected: dict[str, Any]) -> None:
    row = {
        "question": {"full_text": "deep"},
        "answers": '[{"text": "first"}, {"text": "second"}]',
        "score": 3.0,
        "a>=b": "a name",
    }
    given: Any = parse_columns(columns)
    assert rename(row, given).items() >= expected.items()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("prompt=Prompt ,chosen=Chosen", {"prompt": "p", "chosen": "c", "Grade  ": "4"}),
        ("prompt=Prompt,chosen= Chosen,label=Grade >=3", {"prompt": "p", "chosen": "c", "label": True}),
        ("Prompt =,chosen=Chosen,Grade=", {"chosen": "c"}),
        ("label=Grade(4, or so=x;4=yes)", {"label": "yes", "Prompt ": "p", " Chosen": "c"}),
    ],
)
def test_space_around_the_name_of_a_column_does_not_count(columns: str, expected: dict[str, Any]) -> None:
    given: Any = parse_columns(columns)
    assert rename({"Prompt ": "p", " Chosen": "c", "Grade  ": "4"}, given) == expected
    assert rename({"Prompt ": "other", "Prompt": "p"}, {"prompt": "Prompt"}) == {
        "prompt": "p",
        "Prompt ": "other",
    }


def test_a_header_of_a_csv_may_end_with_a_space(tmp_path: Path) -> None:
    path = tmp_path / "spaces.csv"
    path.write_text("Prompt ,Chosen,Rejected\np,a,b\n")
    given: Any = parse_columns("prompt=Prompt ,chosen=Chosen,rejected=Rejected")
    (example,) = read_examples(open_data(path), open_loss("dpo", {}), given)
    assert (example.value.prompt, example.value.chosen) == ("p", "a")


@pytest.mark.parametrize("columns", ["prompt=missing.path", "label=text>=3", "winner=score(1=a)"])
def test_a_column_without_a_meaning_is_named(columns: str) -> None:
    given: Any = parse_columns(columns)
    with pytest.raises(RowError):
        rename({"score": 3, "text": "x"}, given)
    with pytest.raises(OptionError, match="write the values"):
        rename({"score": 3}, {"winner": "score(1)"})


def better(write_rows: Callable[..., Path], column: str, values: list[Any], **fields: str) -> list[str]:
    """The answers that a column of verdicts prefers: x stands in the first, y in the second."""
    rows = [{"prompt": f"p{n}", **(fields or ROW), column: value} for n, value in enumerate(values)]
    rows = [row | {"prompt": f"p{n}"} for n, row in enumerate(rows)]
    examples = read_examples(open_data(write_rows(rows)), open_loss("dpo", {}), {}, "skip")
    return [example.value.chosen for example in examples]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("winner", ["a", "b", "tie"], "xy"),
        ("winner", ["model_b", "Model_A"], "yx"),
        ("winner", ["Response A", "Response B", "both bad"], "xy"),
        ("label", [1, 0], "xy"),
        ("labels", [1.0, 0.0, 1.0], "xyx"),
        ("preference", [-2, 1, 0], "xy"),
        ("overall_preference", [1, 2], "yy"),
    ],
)
def test_all_values_of_a_column_say_what_each_means(
    write_rows: Callable[..., Path], column: str, values: list[Any], expected: str
) -> None:
    assert "".join(better(write_rows, column, values)) == expected


def test_numbers_that_name_the_sides(write_rows: Callable[..., Path]) -> None:
    sides = {"response_1": "x", "response_2": "y"}
    assert better(write_rows, "preference", [1, 2], **sides) == ["x", "y"]
    # with one negative value among them, they are strengths
    assert better(write_rows, "preference", [1, 2, -1], **sides) == ["y", "y", "x"]


@pytest.mark.parametrize("values", [[0, 1], [True, False], ["a", "c"], [1, 2, 3], ["a", 0]])
def test_a_column_of_no_one_reading_is_refused_whole(
    write_rows: Callable[..., Path], values: list[Any]
) -> None:
    with pytest.raises(DataError, match=r'rows.jsonl: field "choice": holds .*--columns \'choice=choice'):
        better(write_rows, "choice", values)


def refusal(path: Path, loss: str, columns: Any = None) -> str:
    with pytest.raises((DataError, OptionError)) as refused:
        read_examples(open_data(path), open_loss(loss, {}), columns)
    return str(refused.value)


def offered(said: str) -> str:
    """What a refusal says to give as `--columns`."""
    return re.findall("--columns '([^']+)'", said)[0]


@pytest.mark.parametrize(
    ("loss", "column", "values", "meanings"),
    [
        ("kto", "label", ["helpful", "unhelpful"], ("helpful=true|false", "unhelpful=true|false")),
        ("kto", "label", ["accepted", "spurned"], ("accepted=true|false", "spurned=true|false")),
        ("kto", "label", ["relevant", "irrelevant", "off"], ("relevant=true|false", "irrelevant=true|false")),
        ("dpo", "winner", ["left one", "right one"], ("left one=a|b", "right one=a|b")),
        ("dpo", "choice", [1, 0], ("0=a|b", "1=a|b")),
    ],
)
def test_a_refusal_leaves_the_meaning_open_and_is_refused_as_it_stands(
    write_rows: Callable[..., Path], loss: str, column: str, values: list[Any], meanings: tuple[str, ...]
) -> None:
    path = write_rows([ROW | {"completion": "c", "prompt": f"p{n}", column: v} for n, v in enumerate(values)])
    given = offered(refusal(path, loss))
    assert all(meaning in given for meaning in meanings)
    said = refusal(path, loss, parse_columns(given))
    assert "names two meanings; leave only the right one" in said
    chosen = given.replace("true|false", "false").replace("a|b", "b")
    columns: Any = parse_columns(chosen)
    for example in read_examples(open_data(path), open_loss(loss, {}), columns):
        assert example.value.desirable is False if loss == "kto" else example.value.chosen == "y"


def test_a_threshold_is_left_open_too(write_rows: Callable[..., Path]) -> None:
    path = write_rows([{"prompt": f"p{n}", "completion": "c", "label": n} for n in (1, 4, 5)])
    given = offered(refusal(path, "kto"))
    assert given == "label=label>=NUMBER"
    assert refusal(path, "kto", parse_columns(given)).endswith("NUMBER is not a number")


@pytest.mark.parametrize(
    ("loss", "field", "values", "flag"),
    [
        ("kto", "label", ["helpful", "unhelpful"], "label=Feedback(helpful=true|false;unhelpful=true|false)"),
        ("kto", "label", [1, 4, 5], "label=Feedback>=NUMBER"),
        ("dpo", "winner", ["left", "right"], "winner=Feedback(left=a|b;right=a|b)"),
    ],
)
def test_a_refusal_names_the_column_that_the_data_has(
    write_rows: Callable[..., Path], loss: str, field: str, values: list[Any], flag: str
) -> None:
    path = write_rows(
        [ROW | {"completion": "c", "prompt": f"p{n}", "Feedback": v} for n, v in enumerate(values)]
    )
    assert offered(refusal(path, loss, {field: "Feedback"})) == flag


def test_all_that_two_answers_lack_is_named_at_once(write_rows: Callable[..., Path]) -> None:
    answers = {"response_a": "x", "response_b": "y"}
    bare = write_rows([answers], "bare.jsonl")
    said = refusal(bare, "dpo")
    assert "nothing says which of response_a and response_b is better; name its column, and that of" in said
    assert said.endswith("of the prompt, with --columns prompt=COLUMN,winner=COLUMN")
    path = write_rows([answers | {"question_text": "Why?", "verdict_text": "a", "by": "x"}])
    said = refusal(path, "dpo")
    assert said.endswith("with --columns prompt=question_text,winner=COLUMN (the row has verdict_text, by)")
    (given,) = re.findall("--columns (\\S+)", said)
    columns: Any = parse_columns(given.replace("COLUMN", "verdict_text"))
    (example,) = read_examples(open_data(path), open_loss("dpo", {}), columns)
    assert (example.value.prompt, example.value.chosen) == ("Why?", "x")
    said = refusal(write_rows([ROW], "asked.jsonl"), "dpo")
    assert said.endswith("name its column with --columns winner=COLUMN (the row has prompt)")


def test_values_that_no_flag_can_hold_are_changed_in_the_data(write_rows: Callable[..., Path]) -> None:
    path = write_rows([{"prompt": "p", "completion": "c", "label": "yes (mostly)"}])
    assert refusal(path, "kto").endswith(
        "not two labels such as true and false; write true or false there instead"
    )


def test_an_empty_label_is_one_bad_row(write_rows: Callable[..., Path]) -> None:
    assert better(write_rows, "winner", ["a", " ", "b"]) == ["x", "y"]
    rows = [{"prompt": f"p{n}", "completion": "c", "label": v} for n, v in enumerate(["yes", " ", "no"])]
    examples = read_examples(open_data(write_rows(rows)), open_loss("kto", {}), {}, "skip")
    assert [example.value.desirable for example in examples] == [True, False]
    assert [str(row).rpartition("jsonl:")[2] for row in examples.bad_rows] == ['2: field "label": is empty']


def ratings(write_rows: Callable[..., Path], values: list[Any]) -> list[bool]:
    rows = [{"prompt": f"p{n}", "completion": f"c{n}", "label": value} for n, value in enumerate(values)]
    return [
        example.value.desirable
        for example in read_examples(open_data(write_rows(rows)), open_loss("kto", {}))
    ]


@pytest.mark.parametrize(
    "values", [[True, False], [1, 0], ["1", "0"], ["yes", "No"], ["up", "down"], [1, -1], ["good", "bad"]]
)
def test_labels(write_rows: Callable[..., Path], values: list[Any]) -> None:
    assert ratings(write_rows, values) == [True, False]


@pytest.mark.parametrize("values", [[1, 0, 2], [4, 1], ["yes", "perhaps"], [1, 0, -1]])
def test_labels_that_are_more_than_two_are_refused_whole(
    write_rows: Callable[..., Path], values: list[Any]
) -> None:
    with pytest.raises(DataError, match=r'field "label": holds .*--columns \'label=label'):
        ratings(write_rows, values)


def test_a_second_verdict_is_named(write_rows: Callable[..., Path]) -> None:
    row = {
        "prompt": "p",
        "response_0": "x",
        "response_1": "y",
        "better_response_id": 0,
        "safer_response_id": 1,
    }
    with pytest.raises(
        DataError, match="to read better_response_id, give --columns safer_response_id=, or to read safer"
    ):
        read_examples(open_data(write_rows([row])), open_loss("dpo", {}))
    columns = {"safer_response_id": ""}
    rows = [row, row | {"better_response_id": 1}]
    examples = read_examples(open_data(write_rows(rows)), open_loss("dpo", {}), columns)
    assert [example.value.chosen for example in examples] == ["x", "y"]


def test_known_data_sets() -> None:
    assert known_columns("hf:openai/summarize_from_feedback/comparisons:train") == {"prompt": "info.post"}
    assert known_columns("hf-stream:OpenAI/webgpt_comparisons") == {"prompt": "question.full_text"}
    assert known_columns("hf:somebody/else") == known_columns("openai/webgpt_comparisons") == {}
    for entry in known_data_sets().values():
        assert set(entry) == {"columns"}


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b", "confidence": 0.5}


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        (PAIR, "wieght=confidence", 'wieght=confidence: the field "wieght" is not read in text prompts with'),
        (PAIR, "wieght=confidence", '; did you mean "weight"?'),
        (PAIR | {"s y": "Be"}, "sytem=s y", "--columns 'sytem=s y': the field \"sytem\" is not read"),
        (PAIR, "scores=confidence", '"scores" is not read in text prompts with chosen and rejected; leave'),
        ({"q": "p"} | PAIR | {"prompt": None}, "prmpt=q", 'field "prmpt"; did you mean "prompt"?'),
        ({"prompt": "p", "x": "a", "y": "b"}, "chossen=x,rejected=y", '; did you mean "chosen"?'),
        (
            PAIR,
            "Weight=confidence",
            '--columns Weight=confidence: nothing reads a field "Weight"; did you mean',
        ),
        (PAIR | {"weight": 2}, "wieght=", '--columns wieght= leaves nothing out; did you mean "weight"?'),
        (PAIR | {"system": "s"}, "sistem=", '--columns sistem= leaves nothing out; did you mean "system"?'),
    ],
)
def test_a_field_that_nothing_reads_is_refused(
    write_rows: Callable[..., Path], row: dict[str, Any], columns: str, said: str
) -> None:
    row = {name: value for name, value in row.items() if value is not None}
    assert said in refusal(write_rows([row]), "dpo", parse_columns(columns))


def test_a_field_of_one_source_is_refused_too(write_rows: Callable[..., Path]) -> None:
    source = replace(open_data(write_rows([PAIR])), columns={"wieght": "confidence"})
    with pytest.raises(OptionError, match='did you mean "weight"'):
        read_examples(source, open_loss("dpo", {}), {}, "skip")


@pytest.mark.parametrize(
    ("loss", "row", "columns"),
    [
        ("dpo", PAIR | {"s1": 2, "s2": 1}, "score_chosen=s1,score_rejected=s2"),
        ("dpo", PAIR | {"s": "Be."}, "system=s"),
        ("dpo", PAIR, "weight=confidence"),
        ("dpo", PAIR, "images=,source="),
        ("dpo", PAIR | {"p2": "p"}, "question=p2"),
        ("odpo", PAIR | {"s1": 2, "s2": 1}, "chosen_score=s1,rejected_score=s2"),
        ("xpo", PAIR | {"r": "c"}, "reference_completion=r"),
    ],
)
def test_fields_that_something_reads(
    write_rows: Callable[..., Path], loss: str, row: dict[str, Any], columns: str
) -> None:
    given: Any = parse_columns(columns)
    assert len(read_examples(open_data(write_rows([row])), open_loss(loss, {}), given)) == 1


@pytest.mark.parametrize(
    ("loss", "column", "value", "said"),
    [
        ("dpo", "System", "Be.", "give --columns system=System, or leave it out with --columns System="),
        ("dpo", "System Prompt", "Be.", "give --columns 'system_prompt=System Prompt', or leave it out with"),
        ("dpo", "systemPrompt", "Be.", "give --columns system_prompt=systemPrompt, or leave it out"),
        ("dpo", "Weight", "0", "give --columns weight=Weight, or leave it out with --columns Weight="),
        ("kto", "Weight", 2, "give --columns weight=Weight"),
        ("dpo", " weight ", 2, 'if it is the field "weight"'),
        ("dpo", "Tools", [{"name": "f"}], "give --columns tools=Tools"),
        ("dpo", "Images", "x", "a model for more than text reads; leave it out with --columns Images="),
        (
            "dpo",
            "Margin",
            2,
            "is for other losses, and this one does not read it; leave it out with --columns Margin=",
        ),
        ("dpo", "Label", "1", "give --columns label=Label"),
        (
            "dpo",
            "instructions",
            "Be.",
            "may change what is trained; leave it out with --columns instructions=",
        ),
        ("dpo", "label", "1", "may change what is trained; leave it out with --columns label="),
    ],
)
def test_a_column_that_would_be_dropped_is_named_however_it_is_written(
    write_rows: Callable[..., Path], loss: str, column: str, value: object, said: str
) -> None:
    row = {"prompt": "p 0 1", "chosen": "a", "rejected": "b", column: value}
    path = write_rows([row])
    with pytest.raises(DataError, match=re.escape(said)):
        read_examples(open_data(path), open_loss(loss, {}))
    with suppress(KeyError):
        named = {"Weight": "weight", "System": "system", "System Prompt": "system_prompt"}[column]
        (example, *_) = read_examples(open_data(path), open_loss(loss, {}), {named: column})
        assert example.weight == float(value) if named == "weight" else "Be." in str(example.value.prompt)
    if loss == "dpo":
        assert len(read_examples(open_data(path), open_loss(loss, {}), {column: ""})) == 1


HEADERS = ("Question (customer)", "Better answer", "Worse answer")


def test_all_that_is_missing_is_named_at_once_and_quoted(write_rows: Callable[..., Path]) -> None:
    path = write_rows([dict(zip(HEADERS, ("Hello", "a", "b"), strict=True))])
    said = refusal(path, "dpo")
    assert said.endswith("ones with --columns 'prompt=Question (customer),chosen=COLUMN,rejected=COLUMN'")
    filled = offered(said).replace("chosen=COLUMN", f"chosen={HEADERS[1]}")
    columns: Any = parse_columns(filled.replace("COLUMN", HEADERS[2]))
    (example,) = read_examples(open_data(path), open_loss("dpo", {}), columns)
    assert (example.value.prompt, example.value.chosen) == ("Hello", "a")
    assert offered(refusal(path, "dpo", {"chosen": HEADERS[1], "rejected": HEADERS[2]})) == (
        "prompt=Question (customer)"
    )
    assert refusal(path, "kto").endswith("'prompt=Question (customer),completion=COLUMN,label=COLUMN'")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "a", "q": "Hi"}, "--columns prompt=COLUMN,rejected=COLUMN"),
        ({"prompt": "p", "a": "x"}, "--columns chosen=COLUMN,rejected=COLUMN"),
        ({"prompt": "p", "completion": "x"},
         'rejected=COLUMN; this loss needs several answers to a prompt, and "completion" is one; '
         "mint-train losses lists those for single completions"),
        ({"instruction": "p", "output": "x"}, "not text: this loss needs several answers to a prompt; "
         "mint-train losses lists those for single completions"),
        ({"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]},
         "name the right one with --columns rejected=COLUMN"),
        ({"Question, in full": "Hello", "chosen": "a", "rejected": "b"},
         'with columns = { "prompt" = "Question, in full" } in a config file'),
    ],
)  # fmt: skip
def test_what_is_missing_and_how_to_name_it(
    write_rows: Callable[..., Path], row: dict[str, Any], said: str
) -> None:
    assert refusal(write_rows([row]), "dpo").endswith(said)


class OwnReader:
    """Reads any field itself."""

    @hookimpl
    def parse_row(self, row: dict[str, Any]) -> Any:
        return row["wieght"]


def test_a_plugin_that_reads_rows_itself_and_a_judge_may_read_any_field(
    write_rows: Callable[..., Path],
) -> None:
    path = write_rows([PAIR])
    columns = {"wieght": "confidence"}
    loss = Loss.of(NamedPlugin("own", OwnReader(), "here"))
    assert [example.value for example in read_examples(open_data(path), loss, columns)] == [0.5]
    (prompt,) = read_prompts(path, Settings(loss="any", columns=columns)).rows
    assert prompt.row["wieght"] == 0.5
