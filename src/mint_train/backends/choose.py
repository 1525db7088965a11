"""Which backend a run uses."""

from __future__ import annotations

from mint_train.backends.base import Backend
from mint_train.backends.local.backend import LocalBackend
from mint_train.backends.mint.backend import MintBackend
from mint_train.settings.model import Settings

BACKENDS = {kind.name: kind for kind in (MintBackend, LocalBackend)}


def choose_backend(settings: Settings) -> Backend:
    """Return the backend that the settings name, else the service if there is a key, else this process."""
    if settings.backend != "auto":
        return BACKENDS[settings.backend](settings, f"--backend {settings.backend}")
    if settings.api_key is not None:
        return MintBackend(settings, "MINT_API_KEY is set")
    return LocalBackend(settings, "MINT_API_KEY is not set")
