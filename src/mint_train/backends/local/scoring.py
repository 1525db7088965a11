"""Compute a pack's logprobs with a model, in the fastest mode that its architecture supports.

There are three modes, fastest first: packs through the decoder and a chunked vocabulary projection; single
sequences through the same; single sequences through the model's own logits. The scorer takes the first
mode that agrees with the model's own logits on a short probe, so no list of architectures is needed.
"""

from __future__ import annotations

import enum
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from transformers import PretrainedConfig

from mint_train.backends.local.attention import ATTENTION_NAME
from mint_train.backends.local.logprobs import Head, precise, target_logprobs
from mint_train.backends.local.lora_forward import fused_lora, plain_lora, replaced_forwards
from mint_train.backends.local.norm_and_mlp import lean_forwards
from mint_train.backends.local.packed_values import spread
from mint_train.backends.local.packing import Pack, TokenSequence, plan_packs
from mint_train.backends.local.rotary import lean_rotations, replaced_rotations
from mint_train.backends.local.vocabulary import States, values_of_logits, vocabulary_values

KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})


Outputs: TypeAlias = States | torch.Tensor
"""Hidden states and their head; logits ``[lookups, vocabulary]`` of a model that gives nothing else."""


class ScoringMode(enum.Enum):
    """How packs are scored; the value describes the mode in a warning."""

    PACKED = "packed sequences, shared prefixes computed once, logits at trained tokens only"
    SINGLE = "one sequence at a time, prefixes computed once per sequence, logits at trained tokens only"
    WHOLE = "one sequence at a time, prefixes computed once per sequence, logits at every token"


class UnsupportedHeadError(Exception):
    """The model's vocabulary projection cannot be computed outside the model."""


class Scorer:
    """Scores packs with a peft-wrapped transformers causal language model.

    Args:
        model: LoRA over frozen weights, with dropout off.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        wrapped = getattr(model, "get_base_model", None)
        self.causal_lm = cast(nn.Module, wrapped() if wrapped is not None else model)
        self.config = cast(PretrainedConfig, self.causal_lm.config)
        self.device = next(model.parameters()).device
        self._lean = lean_forwards(model)
        self._rotations = lean_rotations(model)
        self.mode = ScoringMode.PACKED
        self.mode = self._choose_mode()

    def score(self, pack: Pack) -> torch.Tensor:
        """Return the logprobs of the pack's lookups: float32 ``[lookups]`` on the model's device."""
        targets = pack.lookup_targets.to(self.device)
        if self.mode is ScoringMode.WHOLE:
            logits = self._logits(pack)
            logprobs = logits.to(precise(logits.dtype)).log_softmax(-1)
            return logprobs.gather(1, targets.unsqueeze(1)).squeeze(1)
        return target_logprobs(self._hidden(pack), targets, self._head())

    def outputs(self, pack: Pack) -> Outputs:
        """Return what the quantities over the vocabulary are computed from, of the pack's lookups.

        Without a graph, the head's weights are those of now, whatever is put into its parameters later.
        """
        if self.mode is ScoringMode.WHOLE:
            return self._logits(pack)
        head = self._head()
        if not torch.is_grad_enabled() and head.down is not None and head.up is not None:
            head = replace(head, down=head.down.detach(), up=head.up.detach())
        return States(self._hidden(pack), head)

    def score_vocabulary(
        self, pack: Pack, names: Sequence[str], reference: Outputs | None
    ) -> tuple[torch.Tensor, ...]:
        """Return the logprobs of the pack's lookups, and quantities over the vocabulary beside them.

        Args:
            pack: the pack.
            names: the quantities.
            reference: the `outputs` of the reference, without a graph, where a quantity needs them.
        """
        targets, policy = pack.lookup_targets.to(self.device), self.outputs(pack)
        if isinstance(policy, States):
            return vocabulary_values(policy, targets, names, cast("States | None", reference))
        return values_of_logits(policy, targets, names, cast("torch.Tensor | None", reference))

    def _logits(self, pack: Pack) -> torch.Tensor:
        input_ids = pack.input_ids.to(self.device).unsqueeze(0)
        logits = self.causal_lm(input_ids=input_ids, use_cache=False).logits[0]
        return cast(torch.Tensor, logits[pack.lookup_rows.to(self.device)])

    def _hidden(self, pack: Pack) -> torch.Tensor:
        input_ids = pack.input_ids.to(self.device).unsqueeze(0)
        extra: dict[str, Any] = {}
        if self.mode is ScoringMode.PACKED:
            extra = {
                "position_ids": pack.position_ids.to(self.device).unsqueeze(0),
                "packed_segments": pack.segments,
            }
        hidden = self._decoder()(input_ids=input_ids, use_cache=False, **extra).last_hidden_state[0]
        return cast(torch.Tensor, hidden[pack.lookup_rows.to(self.device)])

    def _decoder(self) -> nn.Module:
        return cast(nn.Module, getattr(self.causal_lm, cast(str, self.causal_lm.base_model_prefix)))

    @contextmanager
    def ready(self, *, adapter: bool = True) -> Iterator[None]:
        """Prepare the model for `score` and its backward, and restore it afterwards."""
        with ExitStack() as stack:
            if not adapter:
                stack.enter_context(cast(Any, self.model).disable_adapter())
            stack.enter_context(fused_lora(self.model))
            stack.enter_context(replaced_forwards(self._lean))
            stack.enter_context(replaced_rotations(self._rotations))
            stack.enter_context(
                self._packed_attention() if self.mode is ScoringMode.PACKED else nullcontext()
            )
            yield

    @contextmanager
    def _packed_attention(self) -> Iterator[None]:
        # Set the config's attribute: set_attn_implementation would run its checks and log in every step.
        before = self.config._attn_implementation
        self.config._attn_implementation = ATTENTION_NAME
        try:
            yield
        finally:
            self.config._attn_implementation = before

    def _head(self) -> Head:
        module = cast(Any, self.causal_lm).get_output_embeddings()
        lora = plain_lora(module)
        base = module if lora is None else module.base_layer
        if type(base) is not nn.Linear:
            if type(getattr(base, "base_layer", None)) is not nn.Linear or not module.disable_adapters:
                raise UnsupportedHeadError(f"its vocabulary projection is a {type(module).__name__}")
            base = base.base_layer
        if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
            raise UnsupportedHeadError("its vocabulary projection is itself trained")
        head = Head(base.weight, base.bias, scale=self._logit_scale(), softcap=self._softcap())
        if lora is None or module.disable_adapters:
            return head
        return Head(base.weight, base.bias, lora.down, lora.up, lora.scale, head.scale, head.softcap)

    def _logit_scale(self) -> float:
        config = self.config
        multiplied = float(getattr(config, "logit_scale", None) or 1.0)
        return multiplied / float(getattr(config, "logits_scaling", None) or 1.0)

    def _softcap(self) -> float | None:
        cap = getattr(self.config, "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    def _choose_mode(self) -> ScoringMode:
        """Return the first mode that agrees with the model's own logits; warn if it is not the fastest."""
        probe = _probe_sequences(int(self.config.get_text_config().vocab_size))
        self.mode = ScoringMode.WHOLE
        expected = self._try(probe)
        reason = _reach_beyond_probe(self.config.get_text_config()) or _takes_no_positions(self._decoder())
        for mode in (ScoringMode.SINGLE,) if reason else (ScoringMode.PACKED, ScoringMode.SINGLE):
            self.mode = mode
            try:
                found = self._try(probe)
            # An architecture may raise anything on input that it does not support.
            except Exception as error:
                reason = reason or f"{type(error).__name__}: {error}"
                continue
            if self._agree(expected, found):
                break
            reason = reason or "its results change when sequences share a forward pass"
        else:
            mode = ScoringMode.WHOLE
        if mode is not ScoringMode.PACKED:
            warnings.warn(
                f"{type(self.causal_lm).__name__} does not support packed sequences ({reason}). "
                f"Training works, but is slower and needs more memory: {mode.value}.",
                stacklevel=4,
            )
        return mode

    def _try(self, sequences: list[TokenSequence]) -> list[torch.Tensor]:
        packs = plan_packs(sequences, self.rows_per_pack(10**6), min_shared=2)
        with torch.no_grad(), self.ready():
            flat = [self.score(pack) for pack in packs]
        return spread(packs, flat, sequences)

    def _agree(self, expected: list[torch.Tensor], found: list[torch.Tensor]) -> bool:
        # Far above rounding errors, far below the effect of a leak or a wrong position on random weights.
        tolerance = 2e-5 if cast(Any, self.causal_lm).dtype is torch.float32 else 0.1
        return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(expected, found, strict=True))

    def rows_per_pack(self, wanted: int) -> int:
        """Return `wanted`, or 1 if the model takes one sequence at a time."""
        return wanted if self.mode is ScoringMode.PACKED else 1


def _reach_beyond_probe(config: PretrainedConfig) -> str:
    """Describe an attention pattern that the short probe cannot reveal; empty if there is none.

    Sliding windows are supported, because transformers passes them to the attention function.
    """
    unknown = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if unknown:
        return f"it has layers of type {', '.join(sorted(unknown))}"
    return "its attention is chunked" if getattr(config, "attention_chunk_size", None) else ""


def _takes_no_positions(decoder: nn.Module) -> str:
    """Say so of a decoder that counts rows by itself; in bfloat16 the probe may not show it. Else empty."""
    taken = inspect.signature(decoder.forward).parameters
    return "" if "position_ids" in taken else "it takes no positions"


def _probe_sequences(vocabulary: int) -> list[TokenSequence]:
    """Make three sequences, two with a shared prefix: enough to detect a leak or a wrong position."""
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(vocabulary, (12,), generator=generator) for _ in range(3)]
    tokens[1][:5] = tokens[0][:5]
    return [TokenSequence(t[:-1], t[1:], torch.ones(len(t) - 1, dtype=torch.bool)) for t in tokens]
