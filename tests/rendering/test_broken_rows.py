"""Small inputs that are easily read wrongly: what the dry run shows of each, or how it refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import family

from mint_train.groups.inspection import DataReport, inspect_data
from mint_train.losses.weighted_sum import open_loss
from mint_train.settings.merge import load_settings

FILES = Path(__file__).parents[1] / "rows" / "faults"


def inspected(file: str, name: str, loss: str = "dpo", **given: Any) -> DataReport:
    settings = load_settings({"loss": loss, "data": str(FILES / f"{file}.jsonl"), "backend": "local"} | given)
    return inspect_data(settings, open_loss(loss, {}), family(name), 4)


def shown(report: DataReport, name: str, row: int = 0) -> list[tuple[str, str]]:
    """Per datum of a row, what is read and what is trained of it."""
    group, _ = report.examples[row]
    texts = []
    for arrays in group.arrays:
        tokens = [*arrays.inputs.tolist(), int(arrays.targets[-1])]
        texts.append(
            (
                family(name).decode(tokens[: arrays.prompt_length]),
                family(name).decode(tokens[arrays.prompt_length :]),
            )
        )
    return texts


def chatml(*turns: str) -> str:
    """ChatML of `role text` turns, with the generation prompt."""
    parts = [turn.partition(" ") for turn in turns]
    return (
        "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, _, text in parts)
        + "<|im_start|>assistant\n"
    )


RIVER = chatml("user Name a river.")
RESULT = "<tool_response>\nDanube\n</tool_response>"
CALL = '\n<tool_call>\n{"name": "find_river", "arguments": {"country": "AT"}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("file", "name", "render", "chosen", "rejected"),
    [
        ("call_alone", "tools", "template", (RIVER, CALL), (RIVER, "Blue.<|im_end|>")),
        ("calls_differ", "tools", "template", (RIVER, f"Calling.{CALL}"), None),
        ("capital_roles", "chatml", "recipe", (RIVER, " The Danube.<|im_end|>"), (RIVER, " Blue.<|im_end|>")),
        ("other_roles", "chatml", "recipe", (RIVER, " The Danube.<|im_end|>"), None),
        ("sharegpt_plain_roles", "chatml", "recipe", (RIVER, " The Danube.<|im_end|>"), None),
        (
            "system_twice", "chatml", "recipe",
            (chatml("system Be brief.", "user Name a river."), " The Danube.<|im_end|>"), None,
        ),
        (
            "system_prompt", "chatml", "recipe",
            (chatml("system Be brief (SYS).", "user Name a river 1."), " The Danube 1.<|im_end|>"), None,
        ),
        (
            "input_beside_prompt", "chatml", "recipe",
            (chatml("user Translate into German.\nriver"), " Fluss<|im_end|>"), None,
        ),
        (
            "context_messages", "chatml", "recipe",
            (
                chatml("user Name a river.", "assistant The Danube.", "user And the longest?"),
                " The Nile.<|im_end|>",
            ),
            None,
        ),
        (
            "hh_windows", "chatml", "recipe",
            (
                chatml("user Name a river.", "assistant Which country?", "user Austria."),
                "  The Danube.<|im_end|>",
            ),
            None,
        ),
        ("json_text", "chatml", "recipe", (RIVER, " The Danube.<|im_end|>"), (RIVER, " Blue.<|im_end|>")),
        (
            "several_messages", "chatml", "template", None, (RIVER, "Blue.<|im_end|>"),
        ),
        (
            "several_shared_messages", "tools", "template",
            (
                chatml("user Name a river.", "assistant Let me see.", f"user {RESULT}"),
                "The Danube.<|im_end|>",
            ),
            None,
        ),
        (
            "rendered_already", "chatml", "raw",
            (chatml("user Name a river 1."), "The Danube 1.<|im_end|>"), None,
        ),
    ],
)  # fmt: skip
def test_what_is_trained(file: str, name: str, render: str, chosen: Any, rejected: Any) -> None:
    policy = "allow" if render == "raw" else "split"
    report = inspected(file, name, render=render, special_tokens=policy)
    assert not report.bad_rows
    found = shown(report, name)
    assert chosen in (found[0], None)
    assert rejected in (found[1], None)


def test_several_messages_on_one_side() -> None:
    report = inspected("several_messages", "chatml", render="template")
    ((read, trained), _) = shown(report, "chatml")
    assert read == RIVER
    assert trained.startswith("Let me see.<|im_end|>")
    assert trained.endswith("The Danube.<|im_end|>")
    assert "<|im_start|>tool\nDanube<|im_end|>" in trained


def test_tools_calls_and_results_of_a_prompt() -> None:
    report = inspected("tools_in_prompt", "tools", render="template")
    ((read, trained), _) = shown(report, "tools")
    assert "# Tools" in read
    assert f"Looking.{CALL}" in read
    assert "<tool_response>\nDanube" in read
    assert trained == "The Danube.<|im_end|>"


def test_a_system_prompt_beside_rated_messages() -> None:
    report = inspected("system_beside_messages", "chatml", "kto", options={"baseline": "batch"})
    assert shown(report, "chatml")[0][0] == chatml("system Be brief (SYS).", "user Name a river 1.")


def test_ranks_count_from_the_best() -> None:
    report = inspected("ranks", "chatml", "plackett-luce")
    assert [trained for _, trained in shown(report, "chatml")] == [" GOOD<|im_end|>", " BAD<|im_end|>"]


@pytest.mark.parametrize(
    ("file", "name", "render", "said"),
    [
        ("system_for_gemma", "gemma", "recipe", "refuses the conversation: System role not supported"),
        ("two_user_turns", "gemma", "recipe", "refuses the conversation: Conversation roles must alternate"),
        (
            "two_user_turns",
            "gemma",
            "template",
            "refuses the conversation: Conversation roles must alternate",
        ),
        (
            "tools_in_prompt",
            "tools",
            "recipe",
            "defines tools; the recipe's form renders text alone; --render temp",
        ),
        (
            "call_alone",
            "tools",
            "recipe",
            "calls a tool; the recipe's form renders text alone; --render template",
        ),
        ("several_messages", "chatml", "recipe", "holds several answers of the assistant; the recipe's form"),
    ],
)
def test_a_row_that_cannot_be_rendered_is_a_bad_row(file: str, name: str, render: str, said: str) -> None:
    (bad, *_) = inspected(file, name, render=render).bad_rows
    assert said in bad.reason


def test_images_are_refused_by_name(run_cli: Any) -> None:
    status, out, err = run_cli("--loss", "dpo", "--data", FILES / "images.jsonl", "--dry-run")
    assert (status, out) == (2, "")
    assert 'field "images": holds what only a model for more than text reads; leave it out with' in err
    assert "--columns images=" in err


def test_a_dry_run_of_rows_that_are_all_too_long_ends_as_the_run(run_cli: Any) -> None:
    given = ("--loss", "dpo", "--data", FILES / "too_long.jsonl", "--max-length", 60)
    dry = run_cli(*given, "--dry-run")
    run = run_cli(*given)
    assert dry.status == run.status == 2
    assert "nothing is left to train" in dry.err
    assert "nothing is left to train" in run.err


def test_every_file_is_tried() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [
        path.stem for path in FILES.iterdir() if f'"{path.stem}' not in text and path.stem not in text
    ]
