"""GGUF files of each architecture and tokenizer that is written, read by transformers and by llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from mint_train.backends.local.gguf_file import check_gguf, load_gguf, write_gguf
from mint_train.backends.local.gguf_vocabulary import SPLITS
from mint_train.backends.local.starter_model import STARTER_FOLDER, make_starter_tokenizer
from mint_train.errors import BackendError, UserError

ROWS = 1030
"""Of the embedding: six more than there are tokens."""
BASICS: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # large weights, so that a row in the wrong position shows in every logprob
    "initializer_range": 0.3,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**BASICS, bos_token_id=None, head_dim=16),
    "llama3-tied": lambda: LlamaConfig(
        **BASICS, bos_token_id=None, rope_parameters=LLAMA3, tie_word_embeddings=True
    ),
    "qwen2": lambda: Qwen2Config(**BASICS),
    "qwen2-tied": lambda: Qwen2Config(**BASICS, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(
        **BASICS, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    ),
}
LLAMA_CPP = Path(__file__).with_name("llama_cpp.py")
TEXTS = (
    "How heavy is a dolphin?",
    " It's 1,234 kg; DON'T we'll\n\n  go  123456 naïve 日本 🙂\t`x`",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a  b   c\r\nd 'S 've",
)


def tiny(name: str) -> Any:
    """A model of random weights, the biases included."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name or parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in parameter_name else 0.0, std=0.3)
    return model.eval()


def tokenizer_that_splits(steps: tuple[str, ...], split: str) -> PreTrainedTokenizerFast:
    """The starter model's tokenizer, splitting text in another way before its merges."""
    described = json.loads((STARTER_FOLDER / "tokenizer.json").read_text())
    words = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": split in ("gpt-2", "smollm"),
    }
    parts: list[dict[str, Any]] = []
    for step in steps:
        if step == "digits":
            parts.append({"type": "Digits", "individual_digits": True})
        elif step.startswith("("):
            parts.append(
                {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}
            )
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*parts, words]}
    described["model"]["ignore_merges"] = split == "llama-bpe"
    whole = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def last_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1)


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_the_model_back(name: str, tmp_path: Path) -> None:
    model, path = tiny(name), tmp_path / "model.gguf"
    write_gguf(model, make_starter_tokenizer(), path, "a model")
    read = load_gguf(path, model.config)
    for ids in (list(range(3, 60)), list(range(100, 300, 2))):
        difference = (last_logprobs(model, ids) - last_logprobs(read, ids)).abs().max()
        assert float(difference) < 0.02, difference
    written = {tensor.name for tensor in GGUFReader(path).tensors}
    assert ("output.weight" in written) is not name.endswith("tied")
    assert ("rope_freqs.weight" in written) is (name == "llama3-tied")


@pytest.mark.oracle
def test_llama_cpp_reads_models_and_tokenizers(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is the oracle of this test and is not installed")
    prompts = [list(range(3, 60)), list(range(100, 300, 2))]
    models = {name: tiny(name) for name in CONFIGS}
    tokenizers = {split: tokenizer_that_splits(steps, split) for steps, split in SPLITS.items()}
    pairs = [(name, "gpt-2") for name in models] + [("qwen2", split) for split in tokenizers]
    asked = []
    for number, (name, split) in enumerate(pairs):
        path = tmp_path / f"{number}.gguf"
        tokenizers[split].chat_template = make_starter_tokenizer().chat_template
        write_gguf(models[name], tokenizers[split], path, name)
        asked.append([str(path), TEXTS, prompts])
    done = subprocess.run(
        [sys.executable, LLAMA_CPP], input=json.dumps(asked), capture_output=True, text=True
    )
    assert "ANSWERS" in done.stdout, done.stderr[-2000:]
    answers = json.loads(done.stdout.partition("ANSWERS")[2].splitlines()[0])
    for (name, split), (tokens, found, chat) in zip(pairs, answers, strict=True):
        own = [tokenizers[split](text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        assert tokens == own, split
        assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        for ids, top in zip(prompts, found, strict=True):
            logprobs = last_logprobs(models[name], ids)
            difference = max(abs(float(logprobs[token]) - logprob) for token, logprob in top)
            assert difference < 0.05, (name, split, difference)


def with_changes(source: Path, target: Path, changes: dict[str, Any], file: str = "config.json") -> str:
    """Copy the starter model, and change one of its files."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    held = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(held | changes))
    return str(target)


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        (
            "config.json",
            {"model_type": "gpt_neox"},
            "the architecture gpt_neox is none of llama, qwen2, qwen3",
        ),
        ("config.json", {"attention_bias": True}, "attention_bias is True, and llama.cpp takes False"),
        (
            "config.json",
            {"use_sliding_window": True},
            "use_sliding_window is True, and llama.cpp takes False",
        ),
        (
            "config.json",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type is linear, which is not written for qwen3",
        ),
        ("config.json", {"vocab_size": 1000}, "its embedding 1000 rows"),
        (
            "tokenizer.json",
            {"pre_tokenizer": {"type": "Whitespace"}},
            "splits text in another way than GPT-2's",
        ),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "normalises text by Lowercase"),
        ("tokenizer.json", {"decoder": {"type": "Fuse"}}, "is not byte-level BPE"),
    ],
)
def test_what_llama_cpp_would_read_otherwise_is_refused_with_a_way_out(
    file: str, changes: dict[str, Any], says: str, tmp_path: Path, starter_model_folder: Path
) -> None:
    model = with_changes(starter_model_folder, tmp_path / "model", changes, file)
    with pytest.raises(UserError) as refused:
        check_gguf(model)
    assert says in str(refused.value)
    assert "--to merged" in str(refused.value)
    assert "convert_hf_to_gguf.py" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = tiny("qwen3")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 70000.0
    with pytest.raises(BackendError, match=r"blk.1.ffn_up.weight holds numbers that float16 cannot"):
        write_gguf(model, make_starter_tokenizer(), tmp_path / "model.gguf", "a model")


def test_a_torn_file_cannot_be_read_back(tmp_path: Path) -> None:
    model, path = tiny("qwen3"), tmp_path / "model.gguf"
    write_gguf(model, make_starter_tokenizer(), path, "a model")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BackendError, match="cannot be read back"):
        load_gguf(path, model.config)
