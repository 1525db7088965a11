"""Tiny models of several architectures, and the plain computation that the engine must agree with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.bloom import BloomConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.granite import GraniteConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen3 import Qwen3Config

from mint_train.backends.local.packing import TokenSequence

VOCABULARY = 61
NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
BASICS: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 128, **NO_TOKENS}
MODERN: dict[str, Any] = {
    **BASICS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    # Large random weights, so that a leak or a wrong position shows in every logprob.
    "initializer_range": 0.3,
}
OLDER = {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3Config(**MODERN),
    "qwen3-tied": lambda: Qwen3Config(**MODERN, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**MODERN),
    "mistral-window": lambda: MistralConfig(**MODERN, sliding_window=6),
    "gemma2-softcap": lambda: Gemma2Config(
        **MODERN,
        sliding_window=7,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=4.0,
    ),
    "granite-scaled": lambda: GraniteConfig(**MODERN, logits_scaling=3.0),
    "gpt-neox": lambda: GPTNeoXConfig(
        **BASICS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    ),
    "gpt2-absolute": lambda: GPT2Config(vocab_size=VOCABULARY, n_positions=128, **OLDER, **NO_TOKENS),
    "bloom-alibi": lambda: BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, **NO_TOKENS
    ),
}
HEAD = {"gpt-neox": "embed_out"}


def make_model(name: str, *, head_lora: bool = False, seed: int = 0, dtype: Any = torch.float32) -> Any:
    """Make a PEFT-wrapped random model whose adapter, in float32, is not the identity."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager")
    for parameter in base.parameters():  # what is computed once, as rotations, stays in float32
        parameter.data = parameter.data.to(dtype)
    linear = [n for n, m in base.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    head = HEAD.get(name, "lm_head")
    targets = [n for n in linear if head_lora or n != head]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.1))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_sequences(tokens: Sequence[Sequence[int]], *, untrained: int = 0) -> list[TokenSequence]:
    """Make next-token sequences; the first `untrained` targets of each are masked out."""
    result = []
    for one in tokens:
        whole = torch.tensor(one)
        result.append(TokenSequence(whole[:-1], whole[1:], torch.arange(1, len(whole)) > untrained))
    return result


def random_tokens(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def plain_logprobs(model: Any, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
    """Compute logprobs by definition: transformers' own forward, one sequence at a time, with a graph."""
    results = []
    for sequence in sequences:
        logits = model(input_ids=sequence.input_tokens.unsqueeze(0), use_cache=False).logits[0].float()
        picked = logits.log_softmax(-1).gather(1, sequence.target_tokens.unsqueeze(1)).squeeze(1)
        results.append(torch.where(sequence.loss_mask, picked, 0.0))
    return results


def entangled_loss(logprobs: list[torch.Tensor]) -> torch.Tensor:
    """Compute a loss of the whole batch that is not a sum over its sequences."""
    means = torch.stack([values.sum() / 10 for values in logprobs])
    ramps = torch.stack([(values * torch.linspace(0.1, 1, len(values))).mean() for values in logprobs])
    return torch.logsumexp(means, 0) + (0.1 * means.sum()).sin() * (0.1 * ramps.sum()).tanh()


def gradients_of(model: Any, work: Callable[[], object]) -> dict[str, torch.Tensor]:
    """Return the adapter's gradients after `work`, starting from none."""
    model.zero_grad(set_to_none=True)
    work()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert found, "there is no gradient"
    model.zero_grad(set_to_none=True)
    return found


def plain_gradients(model: Any, sequences: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
    return gradients_of(model, lambda: entangled_loss(plain_logprobs(model, sequences)).backward())


def assert_same_gradients(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, relative: float = 1e-4
) -> None:
    """Compare gradients, relative to the norm of each matrix."""
    assert found.keys() == expected.keys()
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        # Where terms cancel (query and key on repeated tokens) only rounding is left of a matrix's gradient,
        # so the whole adapter's norm bounds the scale from below.
        scale = max(float(gradient.norm()), 1e-2 * float(whole), 1e-4)
        error = float((found[name] - gradient).norm())
        assert error <= relative * scale, f"{name}: off by {error / scale:.1e}"
