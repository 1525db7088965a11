"""The shapes of public preference data: what is read of each, or the line that says what is missing.

The texts are invented: GOOD stands in the better answer, BAD in the worse, ASK, SYS, PREV and STEP in the
prompt, MID in an answer between. No file may be read wrongly; where flags are needed, a refusal names them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mint_train.errors import DataError
from mint_train.groups.examples import Examples, read_examples
from mint_train.groups.prompts import read_prompts
from mint_train.losses.weighted_sum import open_loss
from mint_train.rows.conversations import Conversation, as_conversation, texts_of
from mint_train.rows.readers import open_data
from mint_train.settings.fields import parse_columns
from mint_train.settings.model import Settings

FILES = Path(__file__).parent / "public"


class Shape(NamedTuple):
    """A file, and what becomes of it."""

    file: str
    loss: str = "dpo"
    prompt: str = "ASK"
    """What the prompt holds, and no answer."""
    rows: int = 2
    """How many of its rows are read."""
    columns: str = ""
    """What the refusal says to give as `--columns`."""


SHAPES = [
    Shape("h4_ultrafeedback_binarized.jsonl"),
    Shape("argilla_uf_binarized_preferences.jsonl"),
    Shape("openbmb_ultrafeedback.jsonl"),
    Shape("openbmb_ultrafeedback.jsonl", "plackett-luce"),
    Shape("tulu3_preference_mixture.jsonl"),
    Shape("olmo3_think_dpo.jsonl"),
    Shape("helpsteer2_ratings.jsonl", "kto", columns="label=helpfulness>=3"),
    Shape("helpsteer2_preference.jsonl", rows=3),
    Shape("skywork_80k.jsonl"),
    Shape("anthropic_hh_rlhf.jsonl", prompt="Hello", rows=3),
    Shape("nectar.jsonl"),
    Shape("nectar.jsonl", "plackett-luce"),
    Shape("intel_orca.jsonl"),
    Shape("capybara_7k.jsonl", prompt="ASK PREV"),
    Shape("dpo_mix_7k.jsonl"),
    Shape("summarize_comparisons.jsonl", columns="prompt=info.post"),
    Shape("chatbot_arena_conversations.jsonl"),
    Shape("arena_55k_csv.csv"),
    Shape("wsdm_arena_parquet.jsonl"),
    Shape("stack_exchange_paired.jsonl"),
    Shape("oasst2_trees.jsonl"),
    Shape("truthy_dpo.jsonl"),
    Shape("toxic_dpo.jsonl"),
    Shape("orpo_dpo_mix_40k.jsonl", rows=3),
    Shape("math_step_dpo.jsonl", prompt="ASK STEP"),
    Shape("trl_kto_mix.jsonl", "kto"),
    Shape("argilla_kto_mix.jsonl", "kto"),
    Shape("trl_hh_helpful.jsonl", prompt="ASK PREV"),
    Shape("rlaif_v.parquet", columns="image="),
    Shape("llamafactory_dpo_en_demo.jsonl"),
    Shape("llamafactory_kto_en_demo.jsonl", "kto"),
    Shape("llamafactory_tool_dpo.jsonl", prompt="SYS TOOLDEF"),
    Shape("tool_calls_openai.jsonl", prompt="ASK TOOLDEF"),
    Shape("replaydpo_as_trl.jsonl", prompt="ASK SYS"),
    Shape("openhermes_binarized.jsonl"),
    Shape("dahoas_rm_static.jsonl"),
    Shape("halos_pairwise.jsonl"),
    Shape("llamafactory_uf.jsonl"),
    Shape("uf_cleaned_kto.jsonl", "kto"),
    Shape("tldr_preference.jsonl"),
    Shape("reasoning_content.jsonl"),
    Shape("ms_swift.jsonl", prompt="ASK SYS"),
    Shape("axolotl_messages.jsonl", prompt="ASK SYS"),
    Shape("system_column_beside_conversations.jsonl", prompt="ASK SYS"),
]


def read(shape: Shape, columns: str) -> Examples:
    given: Any = parse_columns(columns) if columns else {}
    return read_examples(open_data(FILES / shape.file), open_loss(shape.loss, {}), given, "skip")


def answers(example: Any) -> tuple[list[Any], list[Any]]:
    """The answers of an example that are good, and those that are not."""
    if hasattr(example, "chosen"):
        return [example.chosen], [example.rejected]
    if hasattr(example, "completions"):
        return [example.completions[0]], [example.completions[-1]]
    return ([example.completion], []) if example.desirable else ([], [example.completion])


def joined(value: Any) -> str:
    tools = value.tools if isinstance(value, Conversation) else []
    return " ".join([*texts_of(value), *texts_of(tools)])


@pytest.mark.parametrize("shape", SHAPES, ids=[f"{shape.file}-{shape.loss}" for shape in SHAPES])
def test_a_shape_is_read_right(shape: Shape) -> None:
    if shape.columns:
        with pytest.raises(DataError) as refused:
            read(shape, "")
        flags = re.findall(r"--columns (?:'([^']+)'|([^ ;]+))", str(refused.value))
        # a threshold is the user's to say
        assert shape.columns in ["".join(flag).replace("NUMBER", "3") for flag in flags]
    examples = read(shape, shape.columns)
    assert len(examples) == shape.rows
    for example in examples:
        good, bad = answers(example.value)
        prompt = joined(example.value.prompt)
        for answer in good:
            assert "GOOD" in joined(answer) or "find_recipe" in joined(answer)
            assert "BAD" not in joined(answer)
        for answer in bad:
            assert "BAD" in joined(answer)
            assert "GOOD" not in joined(answer)
        assert not re.search("GOOD|BAD|MID", prompt)
        assert all(mark in prompt for mark in shape.prompt.split())


@pytest.mark.parametrize(
    ("file", "loss", "said"),
    [
        ("helpsteer2_ratings.jsonl", "dpo", 'field "chosen": missing; the row has '),
        (
            "trl_math_shepherd.jsonl",
            "plackett-luce",
            'field "labels": is a list that labels completions one by',
        ),
        ("h4_ultrafeedback_binarized.jsonl", "plackett-luce", "missing"),
    ],
)
def test_a_shape_that_does_not_say_enough_is_refused(file: str, loss: str, said: str) -> None:
    with pytest.raises(DataError) as refused:
        read(Shape(file, loss), "")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", SHAPES, ids=[f"{shape.file}-{shape.loss}" for shape in SHAPES])
def test_prompts_alone_are_those_that_training_reads(shape: Shape) -> None:
    """Where a row's answers begin alike, training moves that into the prompt; fresh ones begin earlier."""
    trained = [as_conversation(example.value.prompt) for example in read(shape, shape.columns)]
    given: Any = parse_columns(shape.columns) if shape.columns else {}
    settings = Settings(loss="any", columns=given, on_bad_row="skip")
    alone = [as_conversation(row.prompt) for row in read_prompts(FILES / shape.file, settings).rows]
    if shape.file == "replaydpo_as_trl.jsonl":
        trained = [replace(one, messages=one.messages[:2]) for one in trained]
    assert all(one in alone for one in trained)


def test_every_file_is_tried() -> None:
    assert {path.name for path in FILES.iterdir()} == {
        *(shape.file for shape in SHAPES),
        "trl_math_shepherd.jsonl",
    }


def test_ties_and_malformed_rows_are_named() -> None:
    bad = read(Shape("anthropic_hh_rlhf.jsonl"), "").bad_rows
    assert [row.source.line for row in bad] == [3, 4]
    assert "ends with a message of the user" in bad[0].reason
    assert "ends with an empty answer of the assistant" in bad[1].reason
    for file, said in (
        ("helpsteer2_preference.jsonl", 'is "0": a tie'),
        ("chatbot_arena_conversations.jsonl", 'is "tie": a tie'),
        ("arena_55k_csv.csv", 'field "winner_tie": is "1": a tie'),
    ):
        (row,) = read(Shape(file), "").bad_rows
        assert said in row.reason
        assert "--on-bad-row skip" in row.reason


def test_a_pair_is_two_ratings() -> None:
    examples = read(Shape("skywork_80k.jsonl", "kto"), "")
    assert len(examples) == 4
    assert examples.describe().endswith(
        "2 rows: chat messages, chosen and rejected, rated up and down sharing their prompt"
    )
    for example in examples:
        assert ("GOOD" in example.value.completion) == example.value.desirable


def test_strengths_below_a_minimum_are_ties() -> None:
    examples = read(Shape("helpsteer2_preference.jsonl"), "preference_strength=preference_strength(min=2)")
    assert len(examples) == 2
    assert len(examples.bad_rows) == 2


def test_columns_of_bookkeeping_are_counted() -> None:
    unread = read(Shape("wsdm_arena_parquet.jsonl"), "").unread
    assert unread == {"id": 2, "model_a": 2, "model_b": 2, "language": 2}
