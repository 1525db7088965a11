"""The template form against an independent rendering of whole conversations, for every family of models."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from families import END, FAMILIES, family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mint_train.errors import DoesNotFit, OptionError, RowError
from mint_train.rendering.options import Rendering
from mint_train.rendering.renderer import Renderer
from mint_train.rendering.special_tokens import GuardedTokenizer
from mint_train.rows.conversations import Conversation

TEMPLATE = Rendering("template")
WITH_TEMPLATE = [name for name, (template, *_) in FAMILIES.items() if template]
TOOL = {"type": "function", "function": {"name": "find_river", "parameters": {"type": "object"}}}


def message(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(name: str = "find_river", **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def rendered(
    name: str, prompt: Any, completion: Any, rendering: Rendering = TEMPLATE, policy: Any = "split"
) -> Any:
    """Tokens and weights of one datum, the first token's weight included."""
    datum = Renderer(GuardedTokenizer(family(name), policy), None, rendering).datum(prompt, completion)
    tokens = [*datum.model_input.to_ints(), int(datum.loss_fn_inputs["target_tokens"].to_numpy()[-1])]
    return tokens, [0.0, *datum.loss_fn_inputs["weights"].to_numpy().tolist()]


def independent(name: str, messages: list[Any], prompt: int, **more: Any) -> tuple[list[int], list[float]]:
    """The same by `apply_chat_template` alone: cut behind the last end of a turn, headers found as text.

    The trained parts are found by the template's own text before each turn, and not by our code.
    """
    tokenizer = family(name)
    end = tokenizer.convert_tokens_to_ids(END.get(name, FAMILIES[name][1]))
    whole = list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **more))
    last = len(whole) - 1 - whole[::-1].index(end)
    tokens = whole[: last + 1]
    weights = [0.0] * len(tokens)
    for index in range(prompt, len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        before = list(
            tokenizer.apply_chat_template(
                messages[:index], tokenize=True, return_dict=False, add_generation_prompt=True, **more
            )
        )
        assert whole[: len(before)] == before
        stops = [end, tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.convert_tokens_to_ids("<|call|>")]
        closing = next(n for n in range(len(before), len(tokens)) if tokens[n] in stops)
        for n in range(len(before), closing + 1):
            weights[n] = 1.0
    return tokens, weights


SPECIAL = re.compile(r"<.*>|\[/?[A-Z]")
"""What may be a special token, which is not text to everyone."""
words = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="\r", exclude_categories=["Cs", "Cc"]),
    min_size=1,
    max_size=30,
).filter(lambda text: text.strip() == text and not SPECIAL.search(text))


@st.composite
def conversations(draw: st.DrawFn, system: bool, turns: int) -> tuple[list[Any], int]:
    """Messages that alternate, and how many of them are the prompt."""
    messages = [message("system", draw(words))] if system and draw(st.booleans()) else []
    count = draw(st.integers(1, turns))
    for _ in range(count):
        messages += [message("user", draw(words)), message("assistant", draw(words))]
    first = len(messages) - 2 * draw(st.integers(1, count)) + 1
    return messages, first


NO_SYSTEM = {"gemma", "mistral"}
DROPS = {"qwen3", "think_prompt"}
"""Families whose later turns change the earlier ones, or whose prompt opens a thought."""


@pytest.mark.parametrize("name", [name for name in WITH_TEMPLATE if name not in DROPS])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whole_conversations(name: str, data: st.DataObject) -> None:
    messages, first = data.draw(conversations(system=name not in NO_SYSTEM, turns=3))
    assert rendered(name, messages[:first], messages[first:]) == independent(name, messages, first)


@pytest.mark.parametrize("thinking", [{}, {"enable_thinking": False}])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_hybrid_model(thinking: dict[str, Any], data: st.DataObject) -> None:
    """The last turn is trained with its empty think block, or behind the one that the prompt brings."""
    messages, _ = data.draw(conversations(system=True, turns=3))
    first = len(messages) - 1
    found = rendered("qwen3", messages[:first], messages[first:], Rendering("template", arguments=thinking))
    assert found == independent("qwen3", messages, first, **thinking)
    trained = [token for token, weight in zip(*found, strict=True) if weight]
    assert ("<think>" in family("qwen3").decode(trained)) == (not thinking)
    by_row = Conversation(messages[:first], template_arguments=thinking)
    assert rendered("qwen3", by_row, messages[first:]) == found


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=words, thought=words, answer=words)
@pytest.mark.parametrize("name", ["qwen3", "harmony"])
def test_reasoning_of_its_own(name: str, question: str, thought: str, answer: str) -> None:
    messages = [message("user", question), message("assistant", answer, reasoning_content=thought)]
    tokens, weights = rendered(name, messages[:1], messages[1:])
    whole = family(name).apply_chat_template(messages, tokenize=True, return_dict=False)
    assert tokens == list(whole)[: len(tokens)]
    trained = family(name).decode([token for token, weight in zip(tokens, weights, strict=True) if weight])
    assert thought in trained
    assert answer in trained
    assert trained.endswith(FAMILIES[name][1])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=words, thought=words, answer=words)
def test_a_prompt_that_opens_a_thought(question: str, thought: str, answer: str) -> None:
    text = f"<think>\n{thought}\n</think>\n\n{answer}"
    whole = [message("user", question), message("assistant", text)]
    expected = independent("think_prompt", whole, 1)
    assert rendered("think_prompt", question, text) == expected
    # reasoning that stands in a field of its own is written where the prompt opens it
    of_its_own = [message("assistant", answer, reasoning_content=thought)]
    assert rendered("think_prompt", question, of_its_own) == expected


def test_an_answer_without_the_thought_that_its_prompt_opens_is_refused_with_both_texts() -> None:
    with pytest.raises(RowError) as refused:
        rendered("think_prompt", "Name a river.", "The Danube.")
    assert "<think>" in str(refused.value)
    assert "The Danube." in str(refused.value)


def test_a_template_that_drops_a_trained_thought_is_refused() -> None:
    with pytest.raises(RowError, match=r"reasoning of message 1 is dropped.*Europe.*The Danube"):
        rendered("deepseek", "Name a river.", "<think>\nEurope\n</think>\n\nThe Danube.")
    turns = [
        message("assistant", "Which?", reasoning_content="unclear"),
        message("user", "Any."),
        message("assistant", "The Danube.", reasoning_content="long"),
    ]
    with pytest.raises(RowError, match=r"reasoning of message 1 is dropped.*--train-turns last"):
        rendered("qwen3", "Name a river.", turns)
    tokens, weights = rendered("qwen3", "Name a river.", turns, Rendering("template", turns="last"))
    text = family("qwen3").decode([token for token, weight in zip(tokens, weights, strict=True) if weight])
    assert text == "<think>\nlong\n</think>\n\nThe Danube.<|im_end|>"


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3", "harmony"])
def test_turns_of_others_are_read_and_not_trained(name: str) -> None:
    turns = [
        message("assistant", "Which one?"),
        message("user", "The longest."),
        message("assistant", "The Volga."),
    ]
    tokens, weights = rendered(name, "Name a river.", turns)
    parts = "".join(
        family(name).decode([token]) if weight else "\0"
        for token, weight in zip(tokens, weights, strict=True)
    )
    first, second = re.split("\0+", parts.strip("\0"))
    assert "Which one?" in first
    assert second.endswith(f"The Volga.{END.get(name, FAMILIES[name][1])}")
    only = rendered(name, "Name a river.", turns, Rendering("template", turns="last"))
    assert only[0] == tokens
    assert sum(only[1]) < sum(weights)


@pytest.mark.parametrize("name", ["tools", "qwen3", "harmony"])
def test_tools_calls_and_results(name: str) -> None:
    prompt = Conversation([message("user", "Name a river.")], tools=[] if name == "harmony" else [TOOL])
    turns = [
        message("assistant", None, tool_calls=[call(country="AT")]),
        message("tool", "Danube"),
        message("assistant", "The Danube."),
    ]
    tokens, weights = rendered(name, prompt, turns)
    tokenizer = family(name)
    whole = tokenizer.apply_chat_template(
        [*prompt.messages, *turns], tools=prompt.tools or None, tokenize=True, return_dict=False
    )
    assert tokens == list(whole)[: len(tokens)]
    parts = "".join(
        tokenizer.decode([token]) if weight else "\0" for token, weight in zip(tokens, weights, strict=True)
    )
    first, second = re.split("\0+", parts.strip("\0"))
    assert "find_river" in first
    assert "Danube" not in first
    assert first.endswith("<|call|>" if name == "harmony" else "<|im_end|>")
    assert second.rstrip("\n").endswith(f"The Danube.{FAMILIES[name][1]}")


def test_what_a_template_would_drop_is_refused() -> None:
    calling = [message("assistant", "", tool_calls=[call()])]
    with pytest.raises(RowError, match=r"find_river.*--chat-template"):
        rendered("chatml", "Name a river.", calling)
    with pytest.raises(RowError, match=r"find_river.*--columns tools="):
        rendered("chatml", Conversation([message("user", "Name a river.")], tools=[TOOL]), "The Danube.")
    with pytest.raises(RowError, match="reasoning_content"):
        rendered("chatml", "Name a river.", [message("assistant", "The Danube.", reasoning_content="Europe")])


@pytest.mark.parametrize("form", ["recipe", "template"])
def test_a_template_that_raises_makes_a_bad_row(form: Any) -> None:
    system = [message("system", "Be brief."), message("user", "Hi")]
    with pytest.raises(
        RowError, match="the chat template refuses the conversation: System role not supported"
    ):
        rendered("gemma", system, "Hello.", Rendering(form))
    with pytest.raises(RowError, match="must alternate"):
        rendered("gemma", [message("user", "Hi"), message("user", "there")], "Hello.", Rendering(form))


def test_a_template_may_not_leave_its_sandbox(tmp_path: Any) -> None:
    template = "{{ messages.__class__.__mro__ }}{{ messages[0].content }}"
    with pytest.raises(RowError, match="sandbox"):
        rendered("chatml", "Hi", "Hello.", Rendering("template", template))


def test_recipe_form_refuses_by_name_what_only_the_template_renders() -> None:
    recipe = Rendering()
    tools = Conversation([message("user", "Hi")], tools=[TOOL])
    for prompt, completion, problem in (
        (tools, "Hello.", "defines tools"),
        ("Hi", [message("assistant", None, tool_calls=[call()])], "calls a tool"),
        ("Hi", [message("assistant", "Hello.", reasoning_content="short")], "holds reasoning"),
        (
            "Hi",
            [message("assistant", "a"), message("user", "b"), message("assistant", "c")],
            "several answers",
        ),
    ):
        with pytest.raises(RowError, match=f"{problem}.*--render template"):
            rendered("tools", prompt, completion, recipe)


def test_calls_that_differ_are_no_equal_completions() -> None:
    one, other = (
        [message("assistant", "Calling.", tool_calls=[call(name)])] for name in ("find_river", "find_lake")
    )
    datums = Renderer(family("tools"), None, TEMPLATE).datums("Name a river.", [one, other])
    assert datums[0].model_input.to_ints() != datums[1].model_input.to_ints()


def test_special_tokens_of_a_text_stay_text() -> None:
    text = "Write <|im_end|> twice: <|im_end|>."
    tokens, weights = rendered("chatml", text, text)
    end = family("chatml").convert_tokens_to_ids("<|im_end|>")
    assert tokens.count(end) == 2
    assert tokens[-1] == end
    trained = [token for token, weight in zip(tokens, weights, strict=True) if weight]
    assert family("chatml").decode(trained) == f"{text}<|im_end|>"
    allowed, _ = rendered("chatml", text, text, policy="allow")
    assert allowed.count(end) == 6


def test_a_conversation_is_cut_to_fit() -> None:
    turns = [
        message("assistant", "Which one?"),
        message("user", "The longest."),
        message("assistant", "The Volga."),
    ]
    tokens, weights = rendered("chatml", "Name a river.", turns)
    first, last = weights.index(1.0), len(tokens)
    for length in range(first + 1, last):
        (datum,) = Renderer(family("chatml"), length, TEMPLATE).datums("Name a river.", [turns])
        assert datum.loss_fn_inputs["weights"].to_numpy().tolist() == weights[1:length]
    with pytest.raises(DoesNotFit):
        Renderer(family("chatml"), first, TEMPLATE).datums("Name a river.", [turns])


def test_a_tokenizer_without_a_template_needs_one() -> None:
    with pytest.raises(OptionError, match=r"no chat template.*--chat-template FILE"):
        Renderer(family("no_template"), None, TEMPLATE)
    chatml = Rendering("template", FAMILIES["chatml"][0])
    assert rendered("no_template", "Hi", "Hello.", chatml)[0] == rendered("chatml", "Hi", "Hello.")[0]


def test_an_opening_is_a_part_of_the_prompt() -> None:
    prompt = Conversation([message("user", "Hi")], opening="Step 1: heat.\nStep 2:")
    tokens, weights = rendered("chatml", prompt, " Pour.")
    text = family("chatml").decode(
        [token for token, weight in zip(tokens, weights, strict=True) if not weight]
    )
    assert text.endswith("assistant\nStep 1: heat.\nStep 2:")
    recipe, _ = rendered("chatml", prompt, "Pour.", Rendering())
    assert "Step 1: heat.\nStep 2: Pour.<|im_end|>" in family("chatml").decode(recipe)


# the raw form

RAW = Rendering("raw")


def test_raw_texts_are_taken_as_they_stand() -> None:
    prompt = "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n"
    by_template = rendered("chatml", "Name a river.", "The Danube.")
    assert rendered("chatml", prompt, "The Danube.<|im_end|>", RAW, "allow") == by_template
    assert rendered("chatml", prompt, "The Danube.", RAW, "allow") == by_template
    closed = rendered("chatml", prompt, "The Danube.<|im_end|>\n", RAW, "allow")[0]
    assert closed[: len(by_template[0])] == by_template[0]
    assert len(closed) == len(by_template[0]) + 1


@pytest.mark.parametrize("name", ["no_template", "no_template_eos", "llama3"])
def test_raw_texts_begin_and_end_as_the_tokenizer_has_it(name: str) -> None:
    tokenizer = family(name)
    tokens, weights = rendered(name, "Once upon", " a time", RAW, "allow")
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens.count(tokenizer.bos_token_id) == 1
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokens.count(tokenizer.eos_token_id) == 1
    trained = [token for token, weight in zip(tokens, weights, strict=True) if weight]
    assert tokenizer.decode(trained) == f" a time{tokenizer.eos_token}"
    again = rendered(name, f"{tokenizer.bos_token}Once upon", " a time", RAW, "allow")[0]
    assert again == tokens


def test_raw_form_takes_texts_alone() -> None:
    with pytest.raises(RowError, match=r"has messages.*--render template"):
        rendered("chatml", [message("user", "a"), message("user", "b")], "Hello.", RAW)
    with pytest.raises(RowError, match=r"has messages.*--render template"):
        rendered("chatml", "Hi", [message("assistant", "a", reasoning_content="b")], RAW)


def test_json_is_what_it_says() -> None:
    assert json.loads(json.dumps(TEMPLATE.describe(family("chatml"))))["form"] == "template"
