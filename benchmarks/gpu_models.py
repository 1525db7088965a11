"""Random models, batches and clocks for `gpu.py`."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from model_shapes import QWEN3_600M, TINY
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from mint_train.backends.local.engine import Engine
from mint_train.backends.local.packing import TokenSequence, plan_packs

RANK, BETA, LEARNING_RATE = 16, 0.1, 1e-4
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM_UPS = 2


@dataclass(frozen=True)
class Case:
    """A batch: tokens of each sequence, and pairs."""

    tokens: int
    pairs: int

    def __str__(self) -> str:
        return f"{self.pairs:2} pairs of {self.tokens:4} tokens"


class Bench:
    """The device, with its clock and its memory, and the model's shape."""

    def __init__(self, *, tiny: bool) -> None:
        self.shape = TINY if tiny else QWEN3_600M
        self.tiny = tiny
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.rate = self._matrix_rate(8192 if self.cuda else 512)

    def make_base(self, shape: dict[str, Any], dtype: torch.dtype, *, spread: float = 0.02) -> Any:
        """Make a model with random weights of one dtype; what is computed once, as rotations, is float32."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = Qwen3ForCausalLM(Qwen3Config(**shape, initializer_range=spread))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        return model.eval()

    def adapt(self, base: Any) -> Any:
        """Add a LoRA adapter."""
        return get_peft_model(base, lora_config())

    def seconds_of(self, work: Callable[[], object], count: int) -> float:
        """Return the median seconds of `work`, after two runs to warm up."""
        seconds = []
        for _ in range(WARM_UPS + count):
            self.synchronize()
            began = time.perf_counter()
            work()
            self.synchronize()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[WARM_UPS:])

    def _matrix_rate(self, size: int) -> float:
        """Measure the operations per second of a bfloat16 matrix product of random numbers."""
        left, right = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return float(2 * size**3 / self.seconds_of(lambda: left @ right, 5))

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Free memory, and restart the measurement of its peak."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Return the peak memory of tensors on the GPU, or of this process on a CPU."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def lora_config() -> LoraConfig:
    """Return the adapter's configuration."""
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR, task_type="CAUSAL_LM")


def draw_pairs(case: Case, vocabulary: int) -> list[list[list[int]]]:
    """Draw the tokens of prompt, chosen and rejected for each pair."""
    generator = torch.Generator().manual_seed(case.tokens)
    prompt = case.tokens // 4
    return [
        [
            torch.randint(vocabulary, (length,), generator=generator).tolist()
            for length in (prompt, case.tokens - prompt, case.tokens - prompt)
        ]
        for _ in range(case.pairs)
    ]


def sequences_of(case: Case, shape: dict[str, Any]) -> list[TokenSequence]:
    """Make the sequences of a batch: chosen and rejected in turn."""
    sequences = []
    for prompt, *completions in draw_pairs(case, shape["vocab_size"]):
        for completion in completions:
            tokens = torch.tensor(prompt + completion)
            trained = torch.arange(1, len(tokens)) >= len(prompt)
            sequences.append(TokenSequence(tokens[:-1], tokens[1:], trained))
    return sequences


def plain_logprobs(model: Any, sequence: TokenSequence) -> torch.Tensor:
    """Compute logprobs with the model's own forward, float32 ``[length]``, 0.0 outside the loss mask."""
    logits = model(input_ids=sequence.input_tokens.unsqueeze(0), use_cache=False).logits[0].float()
    picked = logits.log_softmax(-1).gather(1, sequence.target_tokens.unsqueeze(1)).squeeze(1)
    return torch.where(sequence.loss_mask, picked, 0.0)


def dpo_loss(
    logprobs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor] | None = None
) -> torch.Tensor:
    """Compute DPO of chosen and rejected in turn; without a reference its log-ratios are logprobs."""
    scores = torch.stack([values.sum() for values in logprobs])
    if reference is not None:
        scores = scores - torch.stack([values.sum() for values in reference])
    return -nn.functional.logsigmoid(BETA * (scores[0::2] - scores[1::2])).mean()


def count_operations(engine: Engine, sequences: Sequence[TokenSequence]) -> float:
    """Count the floating-point operations that a step needs.

    As in `local_vs_trl.py`: no padding, a shared prompt once, the vocabulary at trained targets only, the
    causal half of attention, nothing recomputed in the backward. Without the reference.
    """
    config = engine.model.config
    layers = [module for name, module in engine.model.named_modules() if name.endswith("base_layer")]
    weights = sum(layer.weight.numel() for layer in layers)
    adapter = sum(parameter.numel() for parameter in engine.trained)
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    (pack,) = plan_packs(sequences, sys.maxsize)
    seen = sum(
        (segment.stop - segment.start) * (segment.context_length + (segment.stop - segment.start) / 2)
        for segment in pack.segments
    )
    vocabulary = 2 * len(pack.lookup_rows) * config.hidden_size * config.vocab_size
    # the backward of frozen weights costs as much as the forward, of attention and adapters twice as much
    return float(
        2 * vocabulary + 3 * 4 * seen * width + 2 * 2 * pack.rows * weights + 3 * 2 * pack.rows * adapter
    )
