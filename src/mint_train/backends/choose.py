"""Choosing a backend, and opening a training client on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mint_train.backends.base import Sampler, TrainingClient
from mint_train.settings.model import MINT_DEFAULT_MODEL, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def choose_backend(settings: Settings) -> tuple[Literal["mint", "local"], str]:
    """Return the backend and why it was chosen."""
    if settings.backend != "auto":
        return settings.backend, f"--backend {settings.backend}"
    if settings.api_key is not None:
        return "mint", "MINT_API_KEY is set"
    return "local", "MINT_API_KEY is not set"


def model_name(settings: Settings, backend: str) -> str:
    """Name the base model as a user would say it."""
    if settings.model:
        return settings.model
    return MINT_DEFAULT_MODEL if backend == "mint" else "a small untrained model made on the spot"


def open_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer, and nothing else of it.

    Raises:
        UserError: it cannot be loaded.
    """
    from mint_train.backends.local.load import load_tokenizer
    from mint_train.backends.local.starter_model import make_starter_tokenizer

    backend, _ = choose_backend(settings)
    if backend == "local" and not settings.model:
        return make_starter_tokenizer()
    return load_tokenizer(settings.model or MINT_DEFAULT_MODEL)


def open_client(settings: Settings, backend: str, folder: Path, *, trains: bool = True) -> TrainingClient:
    """Open a training client with a fresh adapter.

    Args:
        settings: those of the run.
        backend: mint or local.
        folder: the run's.
        trains: whether gradients will be sent, so that the service must prove that it carries them out.

    Raises:
        UserError: the key, the address or the model is wrong.
        BackendError: the service cannot be reached or refuses.
    """
    if backend == "mint":
        from mint_train.backends.mint.client import open_mint_client

        model = settings.model or MINT_DEFAULT_MODEL
        return open_mint_client(
            model, settings.rank, settings.seed, settings.base_url, settings.api_key, trains=trains
        )
    from mint_train.backends.local.load import open_local_client

    return open_local_client(
        settings.model,
        settings.rank,
        settings.seed,
        folder,
        dtype=settings.dtype,
        max_tokens_in_flight=settings.max_tokens_in_flight,
        gradient_checkpointing=settings.gradient_checkpointing,
    )


@dataclass(frozen=True, slots=True)
class Samplers:
    """The base policy and the trained one, with their tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    before: Sampler
    after: Sampler
    close: Callable[[], None]


def open_samplers(
    settings: Settings, backend: str, folder: Path, state: str, weights: str | None
) -> Samplers:
    """Open what samples before and after training.

    Args:
        settings: those of the run.
        backend: mint or local.
        folder: the run's.
        state: a saved state.
        weights: the same state's weights for a sampler, where they are saved already.

    Raises:
        UserError: the key, the address, the model or the state is wrong.
        BackendError: the service cannot be reached or refuses.
    """
    if backend == "local":
        from mint_train.backends.local.load import open_local_client
        from mint_train.backends.local.sampling import LocalSampler

        local = open_local_client(settings.model, settings.rank, settings.seed, folder, dtype=settings.dtype)
        local.load_state_with_optimizer(state).result()
        base, adapted = LocalSampler(local, adapter=False), LocalSampler(local, adapter=True)
        return Samplers(local.get_tokenizer(), base, adapted, local.close)
    from mint_train.backends.mint.client import open_mint_client
    from mint_train.backends.mint.sampling import MintSampler

    model = settings.model or MINT_DEFAULT_MODEL
    client = open_mint_client(
        model, settings.rank, settings.seed, settings.base_url, settings.api_key, trains=False
    )
    if weights is None:
        client.load_state_with_optimizer(state).result()
        weights = client.save_weights_for_sampler("to-sample").result().path
    before, after = MintSampler(client, base_model=model), MintSampler(client, model_path=weights)
    return Samplers(client.get_tokenizer(), before, after, client.close)
