"""Prove on a fresh adapter in which form a service carries out gradients, before a run trusts it with any.

The proof takes an adapter of its own, since its updates leave traces in the weights, the moments and the step
count of the optimiser, and not every service lets a state be loaded into an adapter that has been used. The
adapter is created before the one that is trained and given back, so no run needs two places. What is found
out is kept for a day for each service, version and model.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import httpx
from platformdirs import user_cache_path

from mint_train.backends.mint.gradient_form import FORMS, GradientForm
from mint_train.backends.mint.gradient_probe import Adapter, CannotMeasureError, Probe, Verdict
from mint_train.backends.mint.service import Service
from mint_train.backends.mint.session import Session
from mint_train.errors import BackendError, ServiceError
from mint_train.sdk import SDK_VERSION

CACHE_VARIABLE = "MINT_TRAIN_CACHE"
KEPT_SECONDS = 24 * 60 * 60
PROOF = 1
"""Counted up where the experiments change."""
VERSION_SECONDS = 10.0
PRECISION = "weights arrive rounded to bfloat16 or are computed with at its precision"


class OpenAdapter(Adapter, Protocol):
    """An adapter whose place can be given back."""

    def leave(self) -> None:
        """Give the place back."""
        ...


def find_form(session: Session, open_adapter: Callable[[], OpenAdapter]) -> tuple[GradientForm, str]:
    """Return the form in which gradients are to be sent, and a line about it; both are kept for a day.

    Args:
        session: an open session.
        open_adapter: creates a fresh adapter for the experiments.

    Raises:
        BackendError: the service carries out no form rightly.
        MintTrainError: the service fails, or has no place for an adapter.
    """
    path = verdict_path(session)
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if 0 <= time.time() - kept["at"] < KEPT_SECONDS:
            return GradientForm(**kept["form"]), str(kept["note"])
    form, note, proven = prove_form(session.service.url, open_adapter)
    if proven:
        with suppress(OSError):  # then the next run proves it again
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(f".{os.getpid()}")
            beside.write_text(json.dumps({"at": time.time(), "form": asdict(form), "note": note}))
            beside.replace(path)
    return form, note


def prove_form(url: str, open_adapter: Callable[[], OpenAdapter]) -> tuple[GradientForm, str, bool]:
    """Return the first form that the experiments prove right, a line about it, and whether it was proven.

    Raises:
        BackendError: there is none.
    """
    faults: dict[str, str] = {}
    imprecise: GradientForm | None = None
    adapter = open_adapter()
    try:
        for form in FORMS:
            probe = Probe(adapter, form)
            try:
                verdict = judge(probe)
            except CannotMeasureError as error:
                if form == FORMS[0]:
                    return (
                        form,
                        f"Gradients are sent as {form.loss_fn}; this could not be proved: {error}.",
                        False,
                    )
                verdict = Verdict(str(error))
            if verdict.fault is None and verdict.precise:
                return form, describe(form, faults), True
            if verdict.fault is None:
                imprecise = imprecise or form
            faults.setdefault(form.loss_fn, verdict.fault or PRECISION)
            if probe.spoiled:
                adapter.leave()
                adapter = open_adapter()
    finally:
        adapter.leave()
    if imprecise is not None:
        return imprecise, f"Gradients are sent as {imprecise.loss_fn}; precision: {PRECISION}.", True
    reasons = "; ".join(f"{loss_fn}: {fault}" for loss_fn, fault in faults.items())
    raise BackendError(
        f"the service at {url} does not carry out gradients as they are sent, so a run would train "
        f"something else ({reasons}); `mint-train check-server` shows what it does"
    )


def judge(probe: Probe) -> Verdict:
    """Return a probe's verdict; a form that the service refuses is a wrong one.

    Raises:
        CannotMeasureError: nothing can be said.
        ServiceError: the service fails.
    """
    try:
        return probe.judge()
    except (CannotMeasureError, ServiceError):
        raise
    except BackendError as error:
        return Verdict(str(error))


def describe(form: GradientForm, faults: dict[str, str]) -> str:
    """Say in which form gradients are sent, and why in another one than the first."""
    others = "; ".join(f"with {name}, {fault}" for name, fault in faults.items() if name != form.loss_fn)
    because = f", since {others}" if others else ""
    return f"Gradients are sent as {form.loss_fn}, which this service was seen to carry out rightly{because}."


def verdict_path(session: Session) -> Path:
    """Return the file that keeps what was found out about a service, its version and a model."""
    service = session.service
    parts = [service.url, server_version(service), session.model, SDK_VERSION, str(PROOF)]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = Path(os.environ.get(CACHE_VARIABLE) or user_cache_path("mint-train"))
    return folder / "services" / f"{name}.json"


def server_version(service: Service) -> str:
    """Return what tells the version of a service: its API's own description, or nothing where it has none."""
    try:
        answer = httpx.get(f"{service.url}/openapi.json", timeout=VERSION_SECONDS)
    except httpx.HTTPError:
        return ""
    return hashlib.sha256(answer.content).hexdigest() if answer.is_success else ""
