"""A reward model is read as transformers reads it, whatever is batched with a text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen3Config
from transformers import Qwen3ForSequenceClassification as Classifier

from mint_train.errors import PluginError
from mint_train.judging.judge import Judge, open_judge
from mint_train.plugin import Candidates
from mint_train.testing import check_judge


def save_classifier(folder: Path, tokenizer: Any, labels: int) -> Path:
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_labels=labels, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    Classifier(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return save_classifier(tmp_path_factory.mktemp("reward"), tokenizer, 1)


@pytest.fixture(scope="module")
def judge(reward_model: Path) -> Judge:
    return open_judge("reward-model", {"model": str(reward_model), "batch_size": "3"})


def test_a_reward_is_the_models_output_for_the_conversation(judge: Judge, reward_model: Path) -> None:
    texts = ["Five.", "It is five, and it was five before.", ""]
    found = judge.score([Candidates("What is 2 + 3?", texts)])[0]
    tokenizer: Any = AutoTokenizer.from_pretrained(reward_model)
    model: Any = AutoModelForSequenceClassification.from_pretrained(reward_model)
    model.config.pad_token_id = tokenizer.pad_token_id
    for text, reward in zip(texts, found, strict=True):
        messages = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": text}]
        tokens = tokenizer.apply_chat_template(messages, return_dict=False, return_tensors="pt")
        with torch.inference_mode():
            assert reward == pytest.approx(float(model(tokens).logits[0, 0]), abs=1e-4)
    assert len(set(found)) == 3


def test_the_kit_passes_though_texts_are_padded(judge: Judge) -> None:
    assert [result for result in check_judge(judge) if not result.passed] == []


def test_other_weights_are_another_version(reward_model: Path, judge: Judge, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(reward_model, tmp_path / "copy"))
    version = judge.versions[str(reward_model)]
    assert open_judge("reward-model", {"model": str(copy)}).versions[str(copy)] == version
    change_weights(copy)
    assert open_judge("reward-model", {"model": str(copy)}).versions[str(copy)] != version


def test_a_model_on_the_hub_is_that_of_its_commit(
    reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--org--name"
    first, second = "a" * 40, "b" * 40
    for commit in (first, second):
        shutil.copytree(reward_model, folder / "snapshots" / commit)
    change_weights(folder / "snapshots" / second)
    (folder / "refs").mkdir()

    def judged(model: str, main: str) -> tuple[Any, Any]:
        (folder / "refs" / "main").write_text(main)
        judge = open_judge("reward-model", {"model": model})
        return judge.versions[model], judge.score([Candidates("What is 2 + 3?", ["Five."])])

    of_first, of_second = judged("org/name", first), judged("org/name", second)
    assert (of_first[0], of_second[0]) == (first, second)
    assert of_first[1] != of_second[1]
    assert judged(f"org/name@{first}", second) == of_first


def change_weights(folder: Path) -> None:
    """Double all weights of a model."""
    weights = {name: 2 * tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_model_that_is_none_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(PluginError, match=r"--set model=.*nowhere: it cannot be loaded"):
        open_judge("reward-model", {"model": str(tmp_path / "nowhere")})
    two = save_classifier(tmp_path / "two", tokenizer, 2)
    with pytest.raises(PluginError, match="it has 2 outputs; a reward model has one"):
        open_judge("reward-model", {"model": str(two)})
