"""When a run's reference logprobs are computed: as steps need them, or all before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from mint_train.backends.base import TrainingClient
from mint_train.backends.start import load_start
from mint_train.batches.groups import Groups
from mint_train.groups.build import Dataset
from mint_train.groups.expected_tokens import ExpectedTokens
from mint_train.groups.located_reference import key_of
from mint_train.groups.reference import (
    INITIAL,
    KeptReference,
    Reference,
    ReferencedGroups,
    open_reference,
    store_of,
)
from mint_train.groups.reference_ahead import LogprobsAhead, SecondAdapter
from mint_train.groups.reference_blocks import blocks_of, first_uses
from mint_train.run_folder.parts import REFERENCE_FOLDER
from mint_train.training.run import Run

AS_NEEDED = "those of the first step now, the others as steps need them"
FROM_A_SECOND_ADAPTER = "those of the first step first, the others meanwhile, from a second adapter"
FEW_BLOCKS = 16
"""So many come about as soon from the adapter that is trained as a second one is opened."""


def add_reference(
    run: Run,
    client: TrainingClient,
    expected: ExpectedTokens,
    dataset: Dataset,
    held_out: Mapping[str, Dataset],
) -> tuple[Dataset, dict[str, Dataset], LogprobsAhead | None]:
    """Give the groups that are trained and those held out the logprobs of the loss's reference.

    The third result is what computes those of later steps meanwhile; enter it for as long as the run trains.

    Args:
        run: the run, whose loss has a reference.
        client: whose adapter has not been trained yet, so that its policy is that of the first step.
        expected: which groups make up which step.
        dataset: what is trained on.
        held_out: the held-out sets.
    """
    name = str(run.loss.reference)
    with open_reference(run.backend, name, client, run.folder.path, run.observers.warn) as reference_client:
        why_first = reason_to_compute_first(run, name)
        policy = None if why_first else client.keep_reference()
        reference = reference_of(run, name, reference_client)
        reference = replace(reference, policy=policy or reference_client)
        trained = reference.of(dataset.groups)
        given = reference.all_of if policy is None else reference.of
        evaluated = {name: replace(part, groups=given(part.groups)) for name, part in held_out.items()}
        blocks, first = [*first_uses(expected.order, expected.steps)], blocks_of(expected.order.step(1))
        when, ahead = AS_NEEDED, None
        if why_first:
            when, now = f"all before the first step, {why_first}", blocks
        elif policy is not None:
            now = []
        elif len(trained.missing(blocks)) <= FEW_BLOCKS:
            when, now = "", blocks  # it takes a moment
        else:
            when, now = FROM_A_SECOND_ADAPTER, first
            ahead = logprobs_ahead(run, reference, dataset.groups, blocks)
        if when and len(blocks) > len(first):
            run.observers.notice(f"Reference logprobs: {when}.")
        trained.require(now)
        if ahead is not None:
            trained = ReferencedGroups(dataset.groups, ahead)
        return replace(dataset, groups=trained), evaluated, ahead


def reference_of(run: Run, name: str, client: TrainingClient) -> Reference:
    """Return a run's reference, whose policy a client has, and where its logprobs are kept."""
    store = cache(partial(store_of, client, run.settings, name, run.start_from))
    kept = KeptReference((run.folder.path / REFERENCE_FOLDER).absolute(), store)
    sent = run.counts.counting("reference")
    key = key_of(name, run.backend)
    return Reference(key, client, kept, run.observers.warn, sent, not run.backend.remote)


def logprobs_ahead(run: Run, reference: Reference, groups: Groups, blocks: Sequence[int]) -> LogprobsAhead:
    """Return what computes a reference's logprobs with a second adapter, in the order of their use."""
    adapter = SecondAdapter(partial(open_start, run))
    return LogprobsAhead(replace(reference, policy=adapter), groups, adapter, blocks, run.observers.notice)


def open_start(run: Run) -> TrainingClient:
    """Open another client whose policy is that of the run's first step."""
    client = run.backend.open_client(run.folder.path, run.observers.warn, trains=False)
    if run.start_from is not None:
        load_start(client, run.start_from)
    return client


def reason_to_compute_first(run: Run, reference: str) -> str:
    """Say why all reference logprobs are computed before the first step; empty if nothing asks for it."""
    if reference != INITIAL:
        return f"while {reference} is loaded"
    if run.settings.token_budget is not None:
        return "as --token-budget counts them"
    if run.backend.remote and run.settings.keep_adapters:
        return "as --keep-adapters would keep a second adapter"
    if run.backend.remote and not run.settings.second_adapter:
        return "as --no-second-adapter wants it"
    return ""
