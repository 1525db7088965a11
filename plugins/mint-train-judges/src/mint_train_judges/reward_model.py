"""A reward model: a transformers model for sequence classification with one output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mint_train.plugin import Candidates, ModelVersion, PluginError, as_conversation, hookimpl
from mint_train.plugin import Options as PluginOptions


class RewardModel:
    """The reward that a model for sequence classification gives to the prompt with the completion."""

    class Options(PluginOptions):
        """The model and how it is run."""

        model: str = Field(
            min_length=1, description="Folder of the reward model, or a hub name, perhaps with @REVISION."
        )
        batch_size: int = Field(default=16, ge=1, description="Texts that go through the model together.")
        max_length: int = Field(default=4096, ge=8, description="Tokens of a text, cut at its start.")
        dtype: Literal["auto", "float32", "bfloat16"] = Field(
            default="auto", description="auto: bfloat16 on CUDA, else float32."
        )

    def __init__(self, options: RewardModel.Options) -> None:
        """Load the model.

        Raises:
            PluginError: it cannot be loaded, or has another number of outputs than one.
        """
        self.options = options
        device = "cuda" if torch.cuda.is_available() else "cpu"
        half = options.dtype == "bfloat16" or (options.dtype == "auto" and device == "cuda")
        try:
            self.found = ModelVersion.of(options.model)
            given = self.found.arguments
            self.tokenizer: Any = AutoTokenizer.from_pretrained(**given, trust_remote_code=False)
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                **given,
                dtype=torch.bfloat16 if half else torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise PluginError(f"--set model={options.model}: it cannot be loaded: {reason}") from error
        if self.model.config.num_labels != 1:
            outputs = self.model.config.num_labels
            raise PluginError(
                f"--set model={options.model}: it has {outputs} outputs; a reward model has one"
            )
        self.model.to(device).eval()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # the model finds the last token of a text by it
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.padding_side, self.tokenizer.truncation_side = "right", "left"

    @hookimpl
    def judge_versions(self) -> dict[str, str]:
        """Name the commit of the model on the hub, or a digest of its files."""
        return {self.options.model: self.found.version}

    @hookimpl
    def score(self, batch: Sequence[Candidates]) -> list[list[float]]:
        """Run all texts through the model, those of similar length together."""
        texts = [self._text(one, completion) for one in batch for completion in one.completions]
        tokens = self.tokenizer(
            texts,
            add_special_tokens=not self.tokenizer.chat_template,
            truncation=True,
            max_length=self.options.max_length,
        )["input_ids"]
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        rewards = [0.0] * len(tokens)
        for start in range(0, len(order), self.options.batch_size):
            together = order[start : start + self.options.batch_size]
            for index, reward in zip(together, self._rewards([tokens[n] for n in together]), strict=True):
                rewards[index] = reward
        found = iter(rewards)
        return [[next(found) for _ in one.completions] for one in batch]

    def _text(self, candidates: Candidates, completion: str) -> str:
        """Return the conversation as the reward model reads it."""
        if not self.tokenizer.chat_template:
            return f"{candidates.question}\n\n{completion}"
        conversation = as_conversation(candidates.prompt)
        answer = {"role": "assistant", "content": completion}
        return str(
            self.tokenizer.apply_chat_template(
                [*conversation.messages, answer], tools=conversation.tools or None, tokenize=False
            )
        )

    def _rewards(self, tokens: list[list[int]]) -> list[float]:
        """Return the model's output for each list of token ids."""
        padded = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            return [float(value) for value in self.model(**padded).logits[:, 0].float().tolist()]
