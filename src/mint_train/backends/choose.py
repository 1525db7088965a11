"""Choosing a backend, and opening a training client on it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mint_train.backends.base import TrainingClient
from mint_train.settings import MINT_DEFAULT_MODEL, Settings


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


def open_client(settings: Settings, backend: str, folder: Path) -> TrainingClient:
    """Open a training client with a fresh adapter.

    Raises:
        UserError: the key, the address or the model is wrong.
        BackendError: the service cannot be reached or refuses.
    """
    if backend == "mint":
        from mint_train.backends.mint import open_mint_client

        model = settings.model or MINT_DEFAULT_MODEL
        return open_mint_client(model, settings.rank, settings.seed, settings.base_url, settings.api_key)
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
