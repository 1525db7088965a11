"""Prove on a fresh adapter in which form a service carries out gradients, before a run trusts it with any.

The proof takes an adapter of its own, since its updates leave traces in the weights, the moments and the step
count of the optimiser, and not every service lets a state be loaded into an adapter that has been used. The
adapter is created before the one that is trained and given back, so no run needs two slots. What is found
out is kept for a day for each service, version and model.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from mint_train.backends.mint.gradient_form import FORMS, GradientForm
from mint_train.backends.mint.gradient_probe import Adapter, CannotMeasureError, Probe, Verdict
from mint_train.backends.mint.session import Session
from mint_train.errors import BackendError, MintTrainError, ServiceError
from mint_train.run_folder.files import make_parent, write_whole
from mint_train.sdk import SDK_VERSION
from mint_train.settings.cache import cache_folder

KEPT_SECONDS = 24 * 60 * 60
PROOF = 4
"""Counted up where the experiments change."""
NOT_PROVED = " (not proved)"
LEFT_OVER = " A fresh adapter held gradients of another one, which its first update used up."
ROUNDED = "the service rounds weights to bfloat16, or computes at its precision"


class OpenAdapter(Adapter, Protocol):
    """An adapter whose slot can be freed."""

    def leave(self) -> None:
        """Free the slot."""
        ...


@dataclass(frozen=True, slots=True)
class Proof:
    """How gradients are to be sent to a service."""

    form: GradientForm = FORMS[0]
    note: str = ""
    """A line about it for the user."""
    clips: bool = True
    """Whether the service clips gradients to the norm that an update asks for."""
    proved: bool = False

    @property
    def form_name(self) -> str:
        """What `run.json` calls the form."""
        return self.form.loss_fn + ("" if self.proved else NOT_PROVED)


UNPROVED = Proof()


def find_proof(session: Session, open_adapter: Callable[[], OpenAdapter], *, trust: bool = False) -> Proof:
    """Return how gradients are to be sent, as kept from a proof of the last day or proved now.

    Args:
        session: an open session.
        open_adapter: creates a fresh adapter for the experiments.
        trust: go on where no experiment can show whether gradients are carried out.

    Raises:
        BackendError: the service carries out no form rightly, or none can be measured and `trust` is False.
        MintTrainError: the service fails, or has no free adapter slot.
    """
    path = proof_path(session)
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if 0 <= time.time() - kept.pop("at") < KEPT_SECONDS:
            return Proof(**kept | {"form": GradientForm(**kept["form"])})
    # what is known of a server saves time; whatever comes first has to prove itself
    forms = FORMS[1:] + FORMS[:1] if session.server.divides_by_weights else FORMS
    proof = prove(session.service.url, open_adapter, forms, trust=trust)
    if proof.proved:
        with suppress(MintTrainError):  # then the next run proves it again
            make_parent(path)
            write_whole(path, json.dumps({"at": time.time(), **asdict(proof)}))
    return proof


def prove(
    url: str,
    open_adapter: Callable[[], OpenAdapter],
    forms: Sequence[GradientForm] = FORMS,
    *,
    trust: bool = False,
) -> Proof:
    """Try the forms in turn, on adapters that are given back, and return the first that is right.

    Each form is tried in one series first, which is soon done where it is right, and then step by step.

    Raises:
        BackendError: there is none, or none can be measured and `trust` is False.
        MintTrainError: the service fails, or has no free adapter slot.
    """
    faults: dict[str, str] = {}
    rounded: Proof | None = None
    measured = left_over = False
    tries = deque((form, judge) for form in forms for judge in (Probe.judge_at_once, Probe.judge))
    with ExitStack() as slot:  # given back whatever happens
        adapter = opened(open_adapter, slot)
        while tries:
            form, judge = tries.popleft()
            probe = Probe(adapter, form)
            try:
                verdict = verdict_of(probe, judge)
                measured = True
            except CannotMeasureError as error:
                verdict = Verdict(str(error))
            if verdict.fault is None and verdict.precise:
                note = describe(form, faults) + (LEFT_OVER if left_over else "")
                return Proof(form, note, verdict.clips, proved=True)
            if verdict.fault is None and rounded is None:
                note = f"Gradients are sent as {form.loss_fn}; precision: {ROUNDED}."
                rounded = Proof(form, note, verdict.clips, proved=True)
            if verdict.left_over and not left_over:
                left_over = True
                tries.appendleft((form, judge))
            elif judge is Probe.judge:  # the other one does not know what is wrong
                faults.setdefault(form.loss_fn, verdict.fault or ROUNDED)
            if probe.spoiled or judge is Probe.judge_at_once:
                slot.close()
                adapter = opened(open_adapter, slot)
    return rounded or without_proof(url, faults, measured=measured, trust=trust)


def without_proof(url: str, faults: dict[str, str], *, measured: bool, trust: bool) -> Proof:
    """Refuse a service of which no form is proved right, or trust one of which nothing could be measured.

    Args:
        url: the service.
        faults: by loss of the service, what is wrong with it.
        measured: whether the movements of an adapter could be measured in any form.
        trust: go on with a service of which nothing could be measured.

    Raises:
        BackendError: the run is not to go on.
    """
    reasons = "; ".join(f"{loss_fn}: {fault}" for loss_fn, fault in faults.items())
    if measured:
        raise BackendError(
            f"the service at {url} does not carry out gradients as they are sent, so a run would train "
            f"something else ({reasons}); `mint-train check-server` shows what it does"
        )
    if not trust:
        raise BackendError(
            f"whether the service at {url} carries out gradients as they are sent cannot be measured "
            f"({reasons}); if you know that it does, train with --trust-gradients"
        )
    return Proof(
        note=f"Gradients are sent as {FORMS[0].loss_fn}, which could not be proved right ({reasons}); "
        "the run goes on because of --trust-gradients."
    )


def opened(open_adapter: Callable[[], OpenAdapter], slot: ExitStack) -> OpenAdapter:
    """Open an adapter whose slot is freed when the stack is closed."""
    adapter = open_adapter()
    slot.callback(adapter.leave)
    return adapter


def verdict_of(probe: Probe, judge: Callable[[Probe], Verdict]) -> Verdict:
    """Return what a probe finds by one of its ways.

    Raises:
        CannotMeasureError: nothing can be said, because the service knows no such loss, for example.
        ServiceError: the service fails.
    """
    try:
        return judge(probe)
    except (CannotMeasureError, ServiceError):
        raise
    except BackendError as error:
        raise CannotMeasureError(str(error)) from error


def describe(form: GradientForm, faults: dict[str, str]) -> str:
    """Say in which form gradients are sent, and why in another one than the first."""
    others = "; ".join(f"with {name}, {fault}" for name, fault in faults.items() if name != form.loss_fn)
    because = f", since {others}" if others else ""
    return f"Gradients are sent as {form.loss_fn}, which this service was seen to carry out rightly{because}."


def proof_path(session: Session) -> Path:
    """Return the file that keeps what was found out about a service, its version and a model."""
    parts = [session.service.url, session.server.digest, session.model, SDK_VERSION, str(PROOF)]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return cache_folder() / "services" / f"{name}.json"
