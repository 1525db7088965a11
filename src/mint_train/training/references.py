"""When a run's reference logprobs are computed: as steps need them, or all before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from mint_train.backends.base import TrainingClient
from mint_train.groups.build import Dataset
from mint_train.groups.expected_tokens import ExpectedTokens
from mint_train.groups.reference import (
    INITIAL,
    REFERENCE_FOLDER,
    KeptReference,
    Reference,
    open_reference,
    store_of,
)
from mint_train.groups.reference_blocks import blocks_of, first_uses
from mint_train.training.run import Run


def add_reference(
    run: Run,
    client: TrainingClient,
    expected: ExpectedTokens,
    dataset: Dataset,
    held_out: Mapping[str, Dataset],
) -> tuple[Dataset, dict[str, Dataset]]:
    """Give the groups that are trained and those held out the logprobs of the loss's reference.

    Args:
        run: the run, whose loss has a reference.
        client: whose adapter has not been trained yet, so that its policy is that of the first step.
        expected: which groups make up which step.
        dataset: what is trained on.
        held_out: the held-out sets.
    """
    name = str(run.loss.reference)
    warn = run.observers.warn
    judge = client if name == INITIAL else open_reference(run.backend, name, run.folder.path, warn)
    why_first = reason_to_compute_first(run, name)
    policy = None if why_first else client.keep_reference()
    store = partial(store_of, judge, run.settings, name, run.start_from)
    kept, sent = KeptReference(run.folder.path / REFERENCE_FOLDER, store), run.counts.counting("reference")
    reference = Reference(name, policy or judge, kept, warn, sent, not run.backend.remote)
    trained = reference.of(dataset.groups)
    evaluated = {name: reference.of(part.groups) for name, part in held_out.items()}
    blocks = first_uses(expected.order, expected.steps)
    if len(blocks) > len(blocks_of(expected.order.step(1))):
        first = f"all before the first step, {why_first or 'as a service trains its adapter'}"
        lazy = "those of the first step now, the others as steps need them"
        run.observers.notice(f"Reference logprobs: {lazy if policy else first}.")
    if policy is None:
        trained.require(blocks)
        for groups in evaluated.values():
            groups.require_all()
    if judge is not client:
        judge.close()
    with_reference = {name: replace(part, groups=evaluated[name]) for name, part in held_out.items()}
    return replace(dataset, groups=trained), with_reference


def reason_to_compute_first(run: Run, reference: str) -> str:
    """Say why all reference logprobs are computed before the first step; empty if nothing asks for it."""
    if reference != INITIAL:
        return f"while {reference} is loaded"
    return "as --token-budget counts them" if run.settings.token_budget is not None else ""
