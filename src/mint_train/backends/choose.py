"""Which backend a run uses."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from mint_train.backends.base import Backend
from mint_train.backends.hub_model import pinned
from mint_train.backends.local.backend import LocalBackend
from mint_train.backends.mint.backend import MintBackend
from mint_train.backends.ranks import Led, refuse_several_processes
from mint_train.errors import OptionError, UserError
from mint_train.settings.model import Quantization, Settings

BACKENDS = {kind.name: kind for kind in (MintBackend, LocalBackend)}


def choose_backend(settings: Settings) -> Backend:
    """Return the backend that the settings name, else the service if there is a key, else this machine.

    Raises:
        UserError: `--quantize` is given, and a service computes, or bitsandbytes is not installed.
        OptionError: `torchrun` has started several processes, and the backend does not train in them.
    """
    if settings.backend != "auto":
        backend: Backend = BACKENDS[settings.backend](settings, f"--backend {settings.backend}")
    elif settings.api_key is not None:
        backend = MintBackend(settings, "MINT_API_KEY is set")
    else:
        backend = LocalBackend(settings, "MINT_API_KEY is not set")
    if isinstance(backend, LocalBackend) and settings.model is not None:
        at_commit = settings.model_copy(update={"model": pinned(settings.model)})
        backend = replace(backend, settings=at_commit)
    if settings.quantize is not None:
        refuse_unquantizable(settings.quantize, backend)
    if backend.remote:
        refuse_several_processes(f"Training on a service ({backend.reason})")
    elif Led.leader is None:
        refuse_several_processes("A Python program")
    return backend


def model_at_commit(settings: Settings, backend: Backend) -> dict[str, str]:
    """Return the model as a setting that several runs share, at its commit where it is one of the hub.

    Empty where the service, or each run itself, has the model.
    """
    return {} if backend.remote or settings.model is None else {"model": backend.model}


def refuse_unquantizable(kind: Quantization, backend: Backend) -> None:
    """Refuse to quantise what another machine holds, or without the library that quantises.

    Raises:
        UserError: the message says what to do.
    """
    if backend.remote:
        raise OptionError(
            f"--quantize {kind}: a service decides how it keeps weights ({backend.reason}); leave the option "
            "out, or train on this machine with --backend local"
        )
    if find_spec("bitsandbytes") is None:
        raise UserError(f"--quantize {kind} needs the package bitsandbytes: pip install bitsandbytes")
