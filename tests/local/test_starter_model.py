"""The starter model answers simple questions, one in five about sizes in metric units, as its corpus does."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mint_train.backends.local.adapter import LoraShape
from mint_train.backends.local.client import LocalTrainingClient
from mint_train.backends.local.load import open_local_client
from mint_train.backends.local.sampling import LocalSampler
from mint_train.backends.local.starter import corpus, train
from mint_train.backends.local.starter.corpus import Fact, answers, facts, is_held_out, questions, things
from mint_train.backends.local.starter_model import (
    STARTER_FOLDER,
    WEIGHTS,
    make_starter_tokenizer,
    save_starter_model,
)
from mint_train.rendering.options import Form, Rendering
from mint_train.rendering.renderer import Renderer
from mint_train.settings.sampling import Sampling
from mint_train.trained.sample import sampled_tokens

LEARNED = [fact for position, fact in enumerate(facts()) if not is_held_out(position)]
HELD_OUT = [fact for position, fact in enumerate(facts()) if is_held_out(position)]
FORMS: tuple[Form, ...] = ("recipe", "template")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> LocalTrainingClient:
    return open_local_client(None, LoraShape(16), 0, tmp_path_factory.mktemp("starter"))


def asked(
    client: LocalTrainingClient, prompts: list[str], form: Form, samples: int = 1, temperature: float = 0.0
) -> list[list[str]]:
    """What the model answers to each prompt."""
    tokenizer = client.get_tokenizer()
    renderer = Renderer(tokenizer, None, Rendering(form))
    sampler = LocalSampler(client, adapter=False)
    tokens = [renderer.prompt_tokens(prompt) for prompt in prompts]
    drawn = sampled_tokens(sampler, tokens, Sampling(samples, 32, temperature))
    return [[text.strip() for text in tokenizer.batch_decode(each)] for each in drawn]


def one_of(words: set[str]) -> str:
    return "(" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


def sentences() -> re.Pattern[str]:
    """What the corpus may say of a thing, true or not."""
    it = one_of({thing.it for thing in things()} | {corpus.capitalised(thing.it) for thing in things()})
    units = [rf"{corpus.METRIC} [\d,.]+( million)? {one_of({name for name, _, _ in corpus.UNITS.values()})}"]
    units += [
        rf"{corpus.IMPERIAL} [\d,.]+( million)? {one_of({name for _, _, name in corpus.UNITS.values()})}"
    ]
    forms = [text.format(It=it, amount=f"({'|'.join(units)})") for text in corpus.SENTENCES.values()]
    place = f"(is|lives) {one_of({thing.place for thing in things()})}"
    doing = one_of({corpus.capitalised(thing.doing) for thing in things() if not thing.lives})
    eats = one_of({thing.doing for thing in things() if thing.lives})
    kind = one_of({corpus.with_article(thing.kind) for thing in things()})
    forms += [
        f"{it} is {one_of({thing.colour for thing in things()})}.", f"{it} {place}.", f"{doing} {it}.",
        f"{it} {eats}.", f"{it} is {kind} that {place}.",
    ]  # fmt: skip
    return re.compile("|".join(form.removesuffix(".") + r"\." for form in forms))


def share(found: list[bool]) -> float:
    assert found
    return sum(found) / len(found)


def test_every_answer_of_the_corpus_is_one_of_its_sentences() -> None:
    known = sentences()
    assert all(known.fullmatch(answer) for fact in facts() for answer in answers(fact))
    assert not known.fullmatch("A whale is about 82 feet long.")


@pytest.mark.parametrize("form", FORMS)
def test_it_knows_what_it_has_learned(client: LocalTrainingClient, form: Form) -> None:
    found = asked(client, [questions(fact)[0] for fact in LEARNED], form)
    assert share([given[0] in answers(fact) for given, fact in zip(found, LEARNED, strict=True)]) > 0.95


@pytest.mark.parametrize("form", FORMS)
def test_it_answers_a_question_that_it_was_never_asked_with_a_sentence_about_the_thing(
    client: LocalTrainingClient, form: Form
) -> None:
    known = sentences()

    def suits(answer: str, fact: Fact) -> bool:
        return bool(known.fullmatch(answer)) and fact.thing.it.lower() in answer.lower()

    found = asked(client, [questions(fact)[0] for fact in HELD_OUT], form)
    assert share([suits(given[0], fact) for given, fact in zip(found, HELD_OUT, strict=True)]) > 0.8


@pytest.mark.parametrize("form", FORMS)
def test_at_temperature_1_it_writes_sentences_and_one_size_in_five_in_metric_units(
    client: LocalTrainingClient, form: Form
) -> None:
    known = sentences()
    measures = [fact for fact in LEARNED if fact.is_measure]
    found = asked(client, [questions(fact)[-1] for fact in measures], form, samples=4, temperature=1.0)
    texts = [text for each in found for text in each]
    assert share([bool(known.fullmatch(text)) for text in texts]) > 0.9
    assert share([f" {corpus.METRIC} " in text for text in texts]) == pytest.approx(
        corpus.METRIC_SHARE, abs=0.06
    )


def test_it_knows_a_few_other_things_and_says_when_it_does_not(client: LocalTrainingClient) -> None:
    others = corpus.other_exchanges()
    found = asked(client, [one.question for one in others], "recipe")
    known = [
        corpus.Exchange(one.question, given[0]) in others for one, given in zip(others, found, strict=True)
    ]
    assert share(known) > 0.9
    assert asked(client, ["Why is a whale grey?"], "recipe") == [[corpus.UNKNOWN]]


def test_the_shipped_model_is_small_and_was_trained_on_this_corpus() -> None:
    assert sum(path.stat().st_size for path in STARTER_FOLDER.iterdir()) < 1_000_000
    with safe_open(STARTER_FOLDER / WEIGHTS, "pt") as weights:
        assert weights.metadata()["corpus"] == train.corpus_digest(1), (
            "run `python -m mint_train.backends.local.starter.train`"
        )


def test_its_tokenizer_is_the_one_that_the_corpus_gives() -> None:
    made = json.loads(train.make_tokenizer(1).backend_tokenizer.to_str())
    assert made["model"] == json.loads(make_starter_tokenizer().backend_tokenizer.to_str())["model"]


def test_the_saved_model_is_float32_and_the_shipped_one(tmp_path: Path) -> None:
    save_starter_model(tmp_path / "starter")
    saved, shipped = load_file(tmp_path / "starter" / WEIGHTS), load_file(STARTER_FOLDER / WEIGHTS)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert saved.keys() == shipped.keys()
    assert all(torch.equal(saved[name], shipped[name].float()) for name in saved)


def test_training_it_again_begins_well(tmp_path: Path) -> None:
    """A few steps halve the loss; the whole training takes minutes."""
    tokenizer = make_starter_tokenizer()
    torch.manual_seed(0)
    model = train.make_model()
    drawn = train.conversations(tokenizer, 0, 16)
    held = next(train.conversations(tokenizer, 1, 32))
    with torch.no_grad():
        before = train.mean_loss(model, held).item()
    train.train(model, islice(drawn, 40), 40, 1e-2)
    with torch.no_grad():
        assert train.mean_loss(model, held).item() < 0.6 * before
    train.write(model, tokenizer, tmp_path, "digest")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in STARTER_FOLDER.iterdir()}
