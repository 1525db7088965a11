"""`--dry-run --examples N`: each datum whole, on the screen and as events for another program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import family

RIVER = {"prompt": "Name a river.", "chosen": "The Danube.", "rejected": "Blue.", "id": "r1"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tokenizer alone, whose turns end with another token than its sequences."""
    family("gemma").save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


@pytest.fixture
def events(run_cli: Any, write_rows: Callable[..., Path], model: Path) -> Callable[..., Any]:
    """The events of a dry run."""

    def run(rows: list[Any], *given: Any, loss: str = "dpo") -> tuple[int, list[dict[str, Any]]]:
        ended = run_cli(
            "--loss", loss, "--data", write_rows(rows), "--model", model, "--dry-run", "--json", *given
        )  # fmt: skip
        return ended.status, [json.loads(line) for line in ended.out.splitlines()]

    return run


@pytest.mark.parametrize("render", ["recipe", "template"])
def test_events(events: Callable[..., Any], render: str, write_rows: Callable[..., Path]) -> None:
    status, (data, *examples) = events(
        [RIVER, RIVER | {"prompt": "Another?"}], "--examples", 5, "--render", render
    )
    assert status == 0
    assert (data["event"], data["groups"], data["unread_columns"]) == ("data", 2, {"id": 2})
    assert [example["event"] for example in examples] == ["example", "example"]
    first = examples[0]
    assert first["source"].endswith("rows.jsonl:1")
    assert (first["form"], first["render"]) == ("text prompts with chosen and rejected", render)
    for datum, name, answer in zip(
        first["datums"], ("chosen", "rejected"), ("The Danube.", "Blue."), strict=True
    ):
        assert (datum["name"], datum["attached"]) == (name, {})
        assert family("gemma").decode(datum["tokens"]) == datum["text"]
        assert len(datum["tokens"]) == len(datum["weights"])
        trained = [token for token, weight in zip(datum["tokens"], datum["weights"], strict=True) if weight]
        end = "<end_of_turn>" if render == "template" else "<eos>"
        assert family("gemma").decode(trained) == f"{' ' * (render == 'recipe')}{answer}{end}"


def test_what_is_attached_is_shown(events: Callable[..., Any]) -> None:
    rows = [
        {"prompt": "Name a river.", "completion": "The Danube.", "label": True},
        {"prompt": "Name a lake.", "completion": "Blue.", "label": False},
    ]
    status, (_, *examples) = events(rows, "--examples", 2, loss="kto")
    assert status == 0
    assert [example["datums"][0]["attached"]["label"] for example in examples] == [1.0, 0.0]


def test_the_number_of_examples(events: Callable[..., Any]) -> None:
    assert len(events([RIVER, RIVER])[1]) == 2
    assert len(events([RIVER, RIVER], "--examples", 0)[1]) == 1


def test_the_screen(run_cli: Any, write_rows: Callable[..., Path], model: Path) -> None:
    given = ("--loss", "dpo", "--data", write_rows([RIVER]), "--model", model, "--dry-run")
    shown = " ".join(run_cli(*given).out.split())
    assert "Columns of which nothing is read: id." in shown
    assert f"rendered in recipe form with the tokenizer of {model}" in shown
    assert "\N{LEFT DOUBLE ANGLE BRACKET} The Danube.<eos>\N{RIGHT DOUBLE ANGLE BRACKET}" in shown
    note = "this model's chat template ends a turn with <end_of_turn>: --render template"
    assert note in shown
    shown = " ".join(run_cli(*given, "--render", "template").out.split())
    assert "\N{LEFT DOUBLE ANGLE BRACKET}The Danube.<end_of_turn>\N{RIGHT DOUBLE ANGLE BRACKET}" in shown
    assert note not in shown


def test_a_broken_template_file_is_refused_with_its_line(run_cli: Any, tmp_path: Path, model: Path) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    ended = run_cli(
        "--loss", "dpo", "--model", model, "--render", "template", "--chat-template", path, "--dry-run"
    )
    assert ended.status == 2
    assert f"--chat-template {path}:2: " in ended.err
    assert ended.err.count("\n") == 1
    ended = run_cli("--loss", "dpo", "--chat-template", tmp_path / "none.jinja", "--dry-run")
    assert "No such file" in ended.err


def test_a_template_that_prints_the_date_is_rendered_with_one_date(
    events: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "clock.jinja"
    path.write_text(
        "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}"
        "{% for m in messages %}"
        "{{ '<start_of_turn>' + m.role + '\n' + m.content + '<end_of_turn>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}"
    )
    rows = [RIVER | {"prompt": f"{n}"} for n in range(3)]
    status, (data, *examples) = events(rows, "--render", "template", "--chat-template", path, "--examples", 3)
    assert status == 0
    assert any("prints the date" in note for note in data["notes"])
    dates = {datum["text"].partition("<start")[0] for example in examples for datum in example["datums"]}
    assert len(dates) == 1
    assert dates.pop().endswith("00:00:00.000000")


def test_rows_of_one_prompt_are_held_out_together(
    run_cli: Any, write_rows: Callable[..., Path], model: Path
) -> None:
    rows = [RIVER | {"prompt": f"Question {n // 4}?", "rejected": f"Wrong {n}."} for n in range(40)]
    from mint_train.groups.examples import read_examples
    from mint_train.groups.held_out import split_examples
    from mint_train.losses.weighted_sum import open_loss
    from mint_train.rows.readers import open_data
    from mint_train.settings.merge import load_settings

    path = write_rows(rows)
    loss = open_loss("dpo", {})
    settings = load_settings({"loss": "dpo", "data": str(path), "eval_fraction": 0.1})
    trained, held_out = split_examples(settings, loss, read_examples(open_data(path), loss), {})
    sides = [{example.value.prompt for example in side} for side in (trained, held_out[""])]
    assert not sides[0] & sides[1]
    assert (len(trained), len(held_out[""])) == (36, 4)


def test_a_changed_chat_template_is_refused_at_a_resume(
    train: Callable[..., Any], run_cli: Any, tmp_path: Path
) -> None:
    template = tmp_path / "own.jinja"
    header = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    asking = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    template.write_text("{% for m in messages %}" + header + "{% endfor %}" + asking)
    train(steps=1, render="template", chat_template=str(template))
    assert run_cli("resume", "run", "--steps", 2).status == 0
    template.write_text("Be short." + template.read_text())
    status, _, err = run_cli("resume", "run", "--steps", 3)
    assert status == 2
    assert f"{template} has changed since this run began; restore it, or start a new run" in err
