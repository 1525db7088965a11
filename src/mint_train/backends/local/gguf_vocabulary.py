"""A tokenizer as GGUF keeps it: tokens, their kinds, merges, and the name of the way that text is split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, TokenType

from mint_train.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_LEVEL = "gpt2"
"""llama.cpp's name for byte-level BPE."""
GPT2_WORDS = "the words of GPT-2"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: Mapping[tuple[str, ...], str] = {
    (GPT2_WORDS,): "gpt-2",
    ("digits", GPT2_WORDS): "smollm",
    (rf"{CONTRACTIONS}|\p{{N}}{REST}",): "qwen2",
    (rf"{CONTRACTIONS}|\p{{N}}{{1,3}}{REST}",): "llama-bpe",
}
"""llama.cpp's name of each way to split a text before its merges."""
WHOLE_WORDS_FIRST = ("llama-bpe",)
"""Where llama.cpp takes a word that is a token as it is, without merging it."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    split: str
    """llama.cpp's name of the way that text is split before its merges."""
    tokens: list[str]
    """By id, one for each row of the embedding."""
    kinds: list[TokenType]
    merges: list[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
        """Read a tokenizer.

        Args:
            tokenizer: the tokenizer of the base model.
            size: rows of the embedding; those without a token get a name that no text has.

        Raises:
            UserError: llama.cpp would split texts into other tokens, as far as is known here.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"the tokenizer {type(tokenizer).__name__} is not one of the tokenizers library")
        described = json.loads(backend.to_str())
        split, model = split_name(described), described["model"]
        tokens = [f"[PAD{number}]" for number in range(size)]
        kinds = [TokenType.UNUSED] * size
        for token, number in backend.get_vocab(with_added_tokens=True).items():
            if number >= size:
                raise UserError(f"its tokenizer has the token {number}, and its embedding {size} rows")
            tokens[number], kinds[number] = token, TokenType.NORMAL
        for added in described["added_tokens"]:
            kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return cls(split, tokens, kinds, merges)


def split_name(described: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the way that a tokenizer splits text.

    Args:
        described: the contents of its `tokenizer.json`.

    Raises:
        UserError: it is not byte-level BPE, or splits text in a way that has no name here.
    """
    model = described["model"]
    if model["type"] != "BPE" or (described["decoder"] or {}).get("type") != "ByteLevel":
        raise UserError(f"its tokenizer is not byte-level BPE but {model['type']} with other bytes")
    changed = [
        field for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model[field]
    ]
    if changed:
        raise UserError(f"its tokenizer has {', '.join(changed)}")
    normalizer = described["normalizer"] or {"type": "NFC"}
    # llama.cpp leaves NFC out too where it reads a tokenizer with it, as Qwen's
    if normalizer["type"] != "NFC":
        raise UserError(f"its tokenizer normalises text by {normalizer['type']}")
    name = SPLITS.get(tuple(split_steps(described["pre_tokenizer"])))
    if name is None or model["ignore_merges"] != (name in WHOLE_WORDS_FIRST):
        raise UserError(
            "its tokenizer splits text in another way than GPT-2's, SmolLM's, Qwen's or Llama 3's"
        )
    return name


def split_steps(pre_tokenizer: Mapping[str, Any] | None) -> list[str]:
    """Name each step of a pre-tokenizer that splits text: a regular expression is its own name."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": steps}:
            return [name for step in steps for name in split_steps(step)]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words}:
            return [GPT2_WORDS] if words else []
        case {"type": "Digits", "individual_digits": True}:
            return ["digits"]
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return [str(regex)]
    return ["unknown"]


def add_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
    """Add a tokenizer to a GGUF file: its vocabulary, its special tokens and its chat template."""
    writer.add_tokenizer_model(BYTE_LEVEL)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    some = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(some[0] == ids["bos"])
    writer.add_add_eos_token(some[-1] == ids["eos"])
    template = tokenizer.chat_template
    if isinstance(template, Mapping):  # by name
        template = template.get("default")
    if template:
        writer.add_chat_template(template)
