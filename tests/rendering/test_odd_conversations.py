"""Conversations that are odd, and what becomes of them: rendered whole, or refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, family

from mint_train.errors import DataError, RowError
from mint_train.groups.build import build_dataset
from mint_train.groups.examples import read_examples
from mint_train.losses.weighted_sum import open_loss
from mint_train.rendering.options import Rendering
from mint_train.rendering.renderer import Renderer
from mint_train.rendering.special_tokens import GuardedTokenizer
from mint_train.rows.readers import open_data
from mint_train.settings.model import Settings

ASKED = {"role": "user", "content": "Name a river."}
GREETING = {"role": "assistant", "content": "I help."}
RESULT = {"role": "tool", "content": "12", "tool_call_id": "one"}
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}
DROPPING = "{% for m in messages %}{% if m.role != 'system' %}" + FAMILIES["chatml"][0].partition("%}")[2]  # type: ignore[union-attr]
DROPPING = DROPPING.replace("{% endfor %}", "{% endif %}{% endfor %}")
ONLY_FIRST = DROPPING.replace("m.role != 'system'", "m.role != 'system' or loop.first")


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def calling(name: str = "look_up", arguments: object = '{"q": "x"}') -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "one", "type": "function", "function": function}],
    }


@pytest.fixture
def trained(write_rows: Callable[..., Path]) -> Callable[..., list[str]]:
    """Read a row and render it: `trained(row, "tools", "template")` returns its datums as text."""

    def read(row: dict[str, Any], name: str = "tools", form: Any = "template") -> list[str]:
        loss, tokenizer = open_loss("dpo", {}), family(name)
        (example,) = read_examples(open_data(write_rows([row])), loss)
        renderer = Renderer(GuardedTokenizer(tokenizer, "split"), None, Rendering(form))
        datums = [getattr(item, "datum", item) for item in loss.flatten(example.value, renderer)]
        last = [int(datum.loss_fn_inputs["target_tokens"].data[-1]) for datum in datums]
        return [
            tokenizer.decode([*datum.model_input.to_ints(), token])
            for datum, token in zip(datums, last, strict=True)
        ]

    return read


def row(*prompt: Any, chosen: Any = "Danube.", **more: Any) -> dict[str, Any]:
    return {"prompt": list(prompt), "chosen": chosen, "rejected": "Blue.", **more}


@pytest.mark.parametrize(
    ("name", "form"), [("tools", "template"), ("chatml", "recipe"), ("llama3", "recipe")]
)
def test_each_of_two_system_messages_is_read(trained: Any, name: str, form: str) -> None:
    chosen, _ = trained(row(system("Be brief."), system("Be kind."), ASKED), name, form)
    assert chosen.count("system") == 2
    assert chosen.index("Be brief.") < chosen.index("Be kind.") < chosen.index("Name a river.")


@pytest.mark.parametrize("form", ["recipe", "template"])
@pytest.mark.parametrize(
    ("template", "prompt"),
    [(DROPPING, [system("Be brief."), ASKED]), (ONLY_FIRST, [system("Be brief."), system("Be kind."), ASKED]),
     (ONLY_FIRST, [ASKED, GREETING, system("Be kind."), ASKED])],
)  # fmt: skip
def test_a_system_message_that_the_template_leaves_out_is_refused(
    template: str, prompt: list[Any], form: Any
) -> None:
    renderer = Renderer(GuardedTokenizer(family("chatml"), "split"), None, Rendering(form, template))
    with pytest.raises(RowError, match=r"of the system, is left out by|of the system is not written by"):
        renderer.datum(prompt, "Danube.")
    assert renderer.datum([ASKED], "Danube.")
    if template is ONLY_FIRST:
        assert renderer.datum([system("Be brief."), ASKED], "Danube.")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [([ASKED, RESULT], r"prompt\[1\]\": is a tool's result, and follows a message of the user"),
     ([RESULT, ASKED], "prompt\": begins with a tool's result"),
     ([system("Be brief."), RESULT], "follows a message of the system"),
     ([ASKED, calling(), RESULT | {"tool_call_id": "two"}], "\"two\" is not the id of an earlier call")],
)  # fmt: skip
def test_a_result_without_a_call_is_refused(trained: Any, prompt: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        trained(row(*prompt, tools=[TOOL]))


def test_a_call_written_as_text_has_results_too(trained: Any) -> None:
    asked = {"role": "assistant", "content": '<tool_call>{"name": "look_up"}</tool_call>'}
    chosen, _ = trained(row(ASKED, asked, {"role": "tool", "content": "12"}))
    assert "<tool_response>\n12\n</tool_response>" in chosen


def test_a_call_to_a_tool_that_is_not_defined_is_trained_as_it_stands(trained: Any) -> None:
    """A rejected answer may well be rejected for that."""
    chosen, _ = trained(row(ASKED, chosen=[calling("invented")], tools=[TOOL]))
    assert chosen.endswith('{"name": "invented", "arguments": {"q": "x"}}\n</tool_call><|im_end|>')


@pytest.mark.parametrize("name", ["tools", "qwen3"])
def test_arguments_as_text_and_as_an_object_are_the_same(trained: Any, name: str) -> None:
    texts = [
        trained(row(ASKED, chosen=[calling(arguments=given)], tools=given_tools), name)
        for given, given_tools in (('{"q": "x"}', [TOOL]), ({"q": "x"}, json.dumps([TOOL])))
    ]
    assert texts[0] == texts[1]
    same = row(ASKED, chosen=[calling()], tools=[TOOL]) | {"rejected": [calling(arguments={"q": "x"})]}
    with pytest.raises(DataError, match="is equal to chosen"):
        trained(same, name)


@pytest.mark.parametrize("text", ["", " \n", None])
def test_an_empty_turn_of_the_assistant_is_refused(trained: Any, text: str | None) -> None:
    empty = {"role": "assistant", "content": text}
    for given in (row(ASKED, empty, ASKED), row(ASKED, chosen=[empty]), row(ASKED, chosen=[GREETING, empty])):
        with pytest.raises(
            DataError, match=r"is empty, in a message of the assistant|must be text, not null"
        ):
            trained(given)


def test_a_prompt_may_begin_with_the_assistant_where_the_template_takes_it(trained: Any) -> None:
    chosen, _ = trained(row(GREETING, ASKED), "chatml", "recipe")
    assert chosen.startswith("<|im_start|>assistant\nI help.<|im_end|>\n<|im_start|>user")
    with pytest.raises(RowError, match="roles must alternate"):
        trained(row(GREETING, ASKED), "gemma")


def test_token_weights_that_sum_to_nothing_are_refused(write_rows: Callable[..., Path]) -> None:
    given = {"prompt": "p", "chosen": "one two", "rejected": "three"}
    loss = open_loss("tis-dpo", {})
    rows = [{**given, "chosen_token_weights": [0.0, 0.0], "rejected_token_weights": [1.0]}]
    with pytest.raises(DataError, match="chosen_token_weights"):
        read_examples(open_data(write_rows(rows)), loss)


@pytest.mark.parametrize("form", ["recipe", "template"])
def test_no_text_of_a_row_is_tokenised_alone(
    write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    """Each text is asked for before one is looked at, so that those of many rows go through in one call."""
    tokenizer, alone = copy.deepcopy(family("chatml")), []
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer, "encode", lambda text, **more: (alone.append(text), encode(text, **more))[1]
    )
    loss = open_loss("dpo", {})
    rows = [row({**ASKED, "content": f"Name {n}."}, GREETING, ASKED, chosen=f"Danube {n}.") for n in range(6)]
    examples = read_examples(open_data(write_rows(rows)), loss)
    dataset = build_dataset(examples, loss, tokenizer, Settings(loss="any", render=form))
    assert len(dataset.groups) == len(rows)
    assert [text for text in alone if "Name" in text or "Danube" in text or "Blue" in text] == []
