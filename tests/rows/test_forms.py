"""Every form of rows with a real-looking file, from the command line: recognised, named, read, trained."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mint_train.errors import DataError
from mint_train.groups.examples import read_examples
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.rows.readers import open_data
from mint_train.settings.fields import parse_columns
from mint_train_dpo.rows import PreferencePair
from mint_train_kto.rows import RatedCompletion
from mint_train_ranking.rows import RankedCompletions

FILES = Path(__file__).parent / "files"


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def pair(prompt: Any, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected)


# file, loss, columns, rows, form, one of its examples by place
FORMS = [
    (
        "text.jsonl", "dpo", {}, 3, "text prompts with chosen and rejected",
        (2, pair(
            "Übersetze ins Englische: Der Zug hat Verspätung.", "The train is delayed.",
            "The train has a late.",
        )),
    ),
    (
        "chat.jsonl", "dpo", {}, 2, "chat messages with chosen and rejected",
        (1, pair(
            [user("Pick a name for a grey cat."), assistant("How about Ash?"), user("Something longer.")],
            "Graphite, or Pewter for short walks.", "Cat.",
        )),
    ),
    (
        "shared.jsonl", "dpo", {}, 2, "chat messages, chosen and rejected sharing their prompt",
        (1, pair(
            [
                user("Is a tomato a fruit?"),
                assistant("Botanically yes, a berry; in the kitchen it is treated as a vegetable."),
                user("And a strawberry?"),
            ],
            "An accessory fruit: its flesh is the swollen receptacle, and the seeds outside are the true "
            "fruits.",
            "Yes.",
        )),
    ),
    (
        "sharegpt.json", "dpo", {}, 2, "ShareGPT conversations with chosen and rejected",
        (0, pair(
            [system("Answer as a ship's cook."), user("What is for dinner?")],
            "Salt cod with potatoes, and the last of the lemons before they turn.", "Food.",
        )),
    ),
    (
        "hh.jsonl", "dpo", {}, 3, "Anthropic HH dialogues, chosen and rejected sharing their prompt",
        (0, pair(
            [
                user("My bike chain keeps slipping. What should I check?"),
                assistant("Does it slip in every gear, or only in some?"),
                user("Only in the smallest sprockets."),
            ],
            "Then those sprockets are probably worn, or the cable tension is a little low. "
            "Try half a turn of the barrel adjuster first.",
            "I don't know about bikes.",
        )),
    ),
    (
        "hh_prompt.jsonl", "dpo", {}, 1, "Anthropic HH dialogues with chosen and rejected",
        (0, pair(
            [user("Who wrote Middlemarch?"), assistant("George Eliot."), user("Was that her real name?")],
            " No, she was born Mary Ann Evans and took a pen name.", " Yes.",
        )),
    ),
    (
        "alpaca.json", "dpo", {}, 3, "Alpaca instructions with chosen and rejected",
        (0, pair(
            "Rewrite the sentence in the passive voice.\nThe committee approved the budget.",
            "The budget was approved by the committee.", "The committee was approved by the budget.",
        )),
    ),
    (
        "alpaca.json", "dpo", {}, 3, "Alpaca instructions with chosen and rejected",
        (2, pair(
            [
                system("Reply in one word."), user("What colour are larches in summer?"), assistant("Green."),
                user("And in winter?"),
            ],
            "Bare.", "They are green all year round.",
        )),
    ),
    (
        "alpaca_two.jsonl", "dpo", {}, 1, "Alpaca instructions with two outputs, the better first",
        (0, pair("Sort these numbers.\n9, 4, 7", "4, 7, 9", "9, 7, 4")),
    ),
    (
        "comparison.csv", "dpo", {}, 3, "text prompts with response_a and response_b compared",
        (1, pair('Say "good morning" in Italian, politely.', "Buongiorno,\nsignora.", "Ciao")),
    ),
    (
        "comparison.jsonl", "dpo", {}, 2, "text prompts with response_0 and response_1 compared",
        (0, pair("Suggest a title for an essay on tides.", "The Moon's Long Leash", "Tides")),
    ),
    (
        "orca.jsonl", "dpo", {"prompt": "question", "chosen": "good", "rejected": "bad"}, 2,
        "text prompts with chosen and rejected",
        (0, pair(
            [
                system("You are an AI assistant that helps people find information."),
                user("Which planet spins on its side?"),
            ],
            "Uranus; its axis is tilted by about 98 degrees.", "Saturn.",
        )),
    ),
    (
        "ranked.jsonl", "listmle", {}, 2, "text prompts with ranked completions",
        (1, RankedCompletions(
            "Summarise photosynthesis.",
            (
                "With light, plants turn carbon dioxide and water into sugar and oxygen.",
                "Plants make food.", "Sun.",
            ),
            (1.0, 0.4375, 0.0),
            (9.0, 4.5, 1.0),
        )),
    ),
    (
        "ranked_alpaca.jsonl", "listmle", {}, 1, "Alpaca instructions with ranked output",
        (0, RankedCompletions("Name a prime above 20.", ("23", "27, I think"), (1.0, 0.0), (1.0, 0.0))),
    ),
    (
        "kto.jsonl", "kto", {}, 3, "text prompts with completion and label",
        (1, RatedCompletion("How many bones does an adult have?", "About a thousand.", False)),
    ),
    (
        "kto.csv", "kto", {}, 3, "Alpaca instructions with output and label",
        (1, RatedCompletion("Translate to French\nthank you", "merci", True)),
    ),
    (
        "kto_messages.jsonl", "kto", {}, 2, "chat messages, label of the last one",
        (1, RatedCompletion([user("Can penguins fly?")], "Yes, at night.", False)),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "loss", "columns", "rows", "form", "example"),
    FORMS,
    ids=[f"{form[0]}-{form[5][0]}" for form in FORMS],
)
def test_each_form_is_recognised_and_read(
    file: str, loss: str, columns: dict[str, str], rows: int, form: str, example: tuple[int, Any]
) -> None:
    examples = read_examples(open_data(FILES / file), Loss.of(load_plugin(loss)), columns)
    assert len(examples) == len(list(examples)) == rows
    assert examples.forms == {form: rows}
    place, expected = example
    assert list(examples)[place].value == expected


def test_every_file_is_tried() -> None:
    assert {path.name for path in FILES.iterdir()} == {form[0] for form in FORMS}


@pytest.mark.parametrize("loss", ["dpo", "listmle", "kto"])
def test_each_form_trains_from_the_command_line(
    run_cli: Callable[..., Any], tmp_path: Path, starter_model_folder: Path, loss: str
) -> None:
    """All files of a loss as the shards of one set, so that a run is paid for once."""
    shards = {form[0]: form for form in FORMS if form[1] == loss and not form[2]}
    (tmp_path / "shards").mkdir()
    for name in shards:
        shutil.copy(FILES / name, tmp_path / "shards" / name)
    status, out, err = run_cli(
        "--loss", loss, "--data", "shards/*", "--steps", 1, "--batch-size", 64, "--output", "run",
        "--model", starter_model_folder,
    )  # fmt: skip
    assert (status, err) == (0, "")
    forms: Counter[str] = Counter()
    for name in sorted(shards):
        forms[shards[name][4]] += shards[name][3]
    shown = ", ".join(f"{count} {form}" for form, count in forms.items())
    assert f"shards/*: {forms.total()} rows: {shown}." in out.splitlines()
    recorded = json.loads(Path("run/run.json").read_text())["data"]
    assert (recorded["forms"], recorded["rows"], recorded["skipped"]) == (dict(forms), forms.total(), 0)
    assert recorded["groups"] == forms.total()
    assert not Path("run/skipped_rows.jsonl").exists()


def test_columns_on_the_command_line(run_cli: Callable[..., Any], starter_model_folder: Path) -> None:
    status, out, err = run_cli(
        "--loss", "dpo", "--data", FILES / "orca.jsonl", "--steps", 1,
        "--columns", "prompt=question,chosen=good, rejected=bad",
        "--model", starter_model_folder, "--output", "run",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert f"{FILES}/orca.jsonl: 2 rows: text prompts with chosen and rejected." in out.splitlines()
    assert json.loads(Path("run/run.json").read_text())["settings"]["columns"] == {
        "prompt": "question", "chosen": "good", "rejected": "bad",
    }  # fmt: skip


@pytest.mark.parametrize("columns", ["question", "=question", "prompt=question,", "prompt=a, b"])
def test_columns_that_are_none_are_refused(run_cli: Callable[..., Any], columns: str) -> None:
    status, _, err = run_cli("--loss", "dpo", "--data", FILES / "orca.jsonl", "--columns", columns)
    assert status == 2
    assert err.startswith(f"mint-train: --columns={columns}: write it as FIELD=COLUMN")
    assert "[columns] in a config file, in which a column's name may hold a comma" in " ".join(err.split())


# rows that are in no form, or in two


@pytest.fixture(scope="module")
def dpo() -> Loss:
    return Loss.of(load_plugin("dpo"))


ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}


def problem(write_rows: Callable[..., Path], loss: Loss, row: dict[str, Any], columns: Any = None) -> str:
    path = write_rows([row])
    with pytest.raises(DataError) as refused:
        read_examples(open_data(path), loss, columns)
    return str(refused.value).removeprefix(f"{path}:1: ")


@pytest.mark.parametrize(
    ("row", "readings", "choices"),
    [
        (
            ROW | {"instruction": "i"},
            ("text prompts with chosen and rejected", "Alpaca instructions with chosen and rejected"),
            ("instruction=", "prompt="),
        ),
        (
            ROW | {"response_a": "x", "response_b": "y", "winner": "a"},
            ("text prompts with chosen and rejected", "text prompts with response_a and response_b compared"),
            ("response_a=", "chosen="),
        ),
        (
            {
                "prompt": "p",
                "completion_a": "x",
                "completion_b": "y",
                "answer_a": "x",
                "answer_b": "z",
                "label": "a",
            },
            ("completion_a and completion_b compared", "answer_a and answer_b compared"),
            ("answer_a=", "completion_a="),
        ),
    ],
)
def test_a_row_of_two_forms_shows_both_and_how_to_choose(
    write_rows: Callable[..., Path],
    dpo: Loss,
    row: dict[str, Any],
    readings: tuple[str, str],
    choices: tuple[str, str],
) -> None:
    said = problem(write_rows, dpo, row)
    for reading in readings:
        assert f'{reading}"' in said
    assert f"--columns {choices[0]} for the first" in said
    assert f"--columns {choices[1]} for the second" in said
    assert "\n" not in said
    # and each choice chooses
    path = write_rows([row])
    for choice, reading in zip(choices, readings, strict=True):
        (form,) = read_examples(open_data(path), dpo, {choice.rstrip("="): ""}).forms
        assert form.endswith(reading)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ({"winner": "tie"}, 'field "winner": is "tie": a tie prefers neither'),
        (
            {"winner": "c"},
            'field "winner": holds c, which does not say which of completion_a and completion_b',
        ),
        ({"winner": 1}, "--columns 'winner=winner(1=a|b)'"),
        ({"winner": True}, "--columns 'winner=winner(true=a|b)'"),
        ({}, 'field "label": missing'),
        ({"winner": "a", "label": "b"}, 'field "label": is not alone: the row has label, winner'),
        (
            {"better_response_id": 1, "safer_response_id": 0},
            "to read better_response_id, give --columns safer_response_id=, or to read safer_response_id, "
            "give --columns better_response_id=",
        ),
    ],
)
def test_a_verdict_that_names_neither_is_refused(
    write_rows: Callable[..., Path], dpo: Loss, verdict: dict[str, Any], said: str
) -> None:
    row = {"prompt": "p", "completion_a": "x", "completion_b": "y"} | verdict
    assert said in problem(write_rows, dpo, row)


@pytest.mark.parametrize(
    ("one", "other"),
    [("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"),
     ("chosen-rating", "rejected-rating"), ("chosen_avg_rating", "rejected_avg_rating"),
     ("chosen_reward", "rejected_reward")],
)  # fmt: skip
def test_scores_that_call_the_rejected_answer_better_are_refused(
    write_rows: Callable[..., Path], dpo: Loss, one: str, other: str
) -> None:
    row = {"prompt": "p", "chosen": "x", "rejected": "y", one: "3.5", other: 8}
    said = problem(write_rows, dpo, row)
    assert f'field "{one}": is 3.5, below {other}, 8' in said
    flags = f"{one}=,{other}="
    assert said.endswith(f"--columns {flags}")
    assert len(read_examples(open_data(write_rows([row])), dpo, parse_columns(flags))) == 1
    for scores in ((8, 8), (9, 8), (None, 8), ("", 8), ([3], [8]), ("low", "high")):
        path = write_rows([row | dict(zip((one, other), scores, strict=True))])
        assert len(read_examples(open_data(path), dpo)) == 1


@pytest.mark.parametrize(
    ("value", "better"), [("a", "x"), ("B", "y"), ("completion_b", "y"), ("model_a", "x"), (" a ", "x")]
)
def test_verdicts(write_rows: Callable[..., Path], dpo: Loss, value: str, better: str) -> None:
    row = {"prompt": "p", "completion_a": "x", "completion_b": "y", "label": value}
    (example,) = read_examples(open_data(write_rows([row])), dpo)
    assert example.value.chosen == better


def test_dialogues_part_where_their_answers_differ(write_rows: Callable[..., Path], dpo: Loss) -> None:
    row = {
        "chosen": "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant: four",
        "rejected": "\n\nHuman: one\n\nAssistant: other",
    }
    (example,) = read_examples(open_data(write_rows([row])), dpo)
    assert example.value.prompt == [user("one")]
    assert example.value.chosen == [assistant("two"), user("three"), assistant("four")]
    assert example.value.rejected == "other"
    row["rejected"] = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three"
    assert "ends with a message of the user" in problem(write_rows, dpo, row)
    row = {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"}
    assert 'field "chosen": ends with an empty answer of the assistant' in problem(write_rows, dpo, row)


def test_words_that_look_like_a_turn_stay_in_it(write_rows: Callable[..., Path], dpo: Loss) -> None:
    row = {
        "chosen": '\n\nHuman: Write "Human: hi"\nAssistant: is not a turn\n\nAssistant: Human: hi',
        "rejected": '\n\nHuman: Write "Human: hi"\nAssistant: is not a turn\n\nAssistant: no',
    }
    (example,) = read_examples(open_data(write_rows([row])), dpo)
    assert example.value == pair([user('Write "Human: hi"\nAssistant: is not a turn')], "Human: hi", "no")


def test_a_missing_column_is_named(write_rows: Callable[..., Path], dpo: Loss) -> None:
    said = problem(write_rows, dpo, ROW, {"prompt": "question"})
    assert said == (
        'field "question": missing, though --columns prompt=question asks for it; '
        "the row has 'prompt', 'chosen', 'rejected'"
    )


def test_columns_may_trade_places(write_rows: Callable[..., Path], dpo: Loss) -> None:
    columns = {"chosen": "rejected", "rejected": "chosen"}
    (example,) = read_examples(open_data(write_rows([ROW])), dpo, columns)
    assert example.value == pair("p", "b", "a")


def test_files_of_several_forms_are_counted(write_rows: Callable[..., Path], dpo: Loss) -> None:
    chat = ROW | {"prompt": [user("p")]}
    examples = read_examples(open_data(write_rows([ROW, chat, ROW])), dpo)
    assert examples.describe().endswith(
        "3 rows: 2 text prompts with chosen and rejected, 1 chat messages with chosen and rejected"
    )
