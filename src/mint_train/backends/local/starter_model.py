"""The starter model: a tiny Qwen3 with fixed random weights, made in a second without key, hub or download.

It is for trying out losses only: it has learned nothing.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

STARTER_NAME = "mint-train/starter"
SEED = 1
INITIALIZER_RANGE = 0.05
"""Larger than the usual 0.02, so that logprobs differ from token to token before training."""
VOCABULARY = 1024
END_OF_TURN, END_OF_TEXT, START_OF_TURN = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@cache
def trained_bpe() -> Tokenizer:
    """Train a byte-level BPE on a page of English; cached, as it is the same each time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = files(__package__).joinpath("starter_corpus.txt").read_text(encoding="utf-8")
    tokenizer.train_from_iterator(corpus.splitlines(), trainer)
    return tokenizer


def make_starter_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of a byte-level BPE, with the ChatML chat template."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=trained_bpe(),  # which it copies
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_starter_model(vocabulary: int) -> Qwen3ForCausalLM:
    """Make a Qwen3-shaped model of about 200,000 parameters with fixed random weights, float32."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen3ForCausalLM(config)
    model.eval()
    return model


def save_starter_model(folder: Path) -> None:
    """Save the model and its tokenizer in a folder that transformers, and servers built on it, can load."""
    tokenizer = make_starter_tokenizer()
    make_starter_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers before 5.9 finds neither this tokenizer class nor the nested rope_theta
    amend_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    amend_json(folder / "config.json", rope_theta=10000.0)


def amend_json(path: Path, **values: object) -> None:
    """Set top-level values in a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | values, indent=2) + "\n", encoding="utf-8")
