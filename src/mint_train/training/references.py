"""When a run's reference logprobs are computed: as steps need them, or all before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial

from mint_train.backends.base import Forwards, TrainingClient
from mint_train.backends.start import load_start
from mint_train.errors import MintTrainError, ServiceError
from mint_train.groups.build import Dataset
from mint_train.groups.expected_tokens import ExpectedTokens
from mint_train.groups.reference import (
    INITIAL,
    REFERENCE_FOLDER,
    KeptReference,
    Reference,
    ReferencedGroups,
    ReferenceLogprobs,
    open_reference,
    store_of,
)
from mint_train.groups.reference_ahead import LogprobsAhead, SecondAdapter
from mint_train.groups.reference_blocks import blocks_of, first_uses
from mint_train.training.run import Run

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

    On a service a second adapter may compute those of later steps: then the third result, which is to be
    entered for as long as the run trains.

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
    store = cache(partial(store_of, judge, run.settings, name, run.start_from))
    kept, sent = KeptReference(run.folder.path / REFERENCE_FOLDER, store), run.counts.counting("reference")
    reference = Reference(name, judge, kept, warn, sent, not run.backend.remote)
    blocks = list(first_uses(expected.order, expected.steps))
    missing = partial(ReferenceLogprobs(reference, dataset.groups).missing, blocks)
    policy, when = find_policy(run, client, name, missing)
    reference = replace(reference, policy=policy or judge)
    ahead = (
        LogprobsAhead(reference, dataset.groups, policy, blocks)
        if isinstance(policy, SecondAdapter)
        else None
    )
    trained = ReferencedGroups(dataset.groups, ahead) if ahead else reference.of(dataset.groups)
    evaluated = {name: reference.of(part.groups) for name, part in held_out.items()}
    if len(blocks) > len(blocks_of(expected.order.step(1))):
        run.observers.notice(f"Reference logprobs: {when}.")
    if policy is None:
        trained.require(blocks)
    if policy is None or ahead:
        for groups in evaluated.values():
            groups.require_all()
    if judge is not client:
        judge.close()
    with_reference = {name: replace(part, groups=evaluated[name]) for name, part in held_out.items()}
    return replace(dataset, groups=trained), with_reference, ahead


def find_policy(
    run: Run, client: TrainingClient, reference: str, missing: Callable[[], list[int]]
) -> tuple[Forwards | None, str]:
    """Return what computes a reference while the client's adapter is trained, and when that is.

    Args:
        run: the run.
        client: whose adapter has not been trained yet.
        reference: the name of the reference.
        missing: finds the blocks of logprobs that are kept nowhere.

    Returns:
        None where all are computed before the first step.
    """
    if why := reason_to_compute_first(run, reference):
        return None, f"all before the first step, {why}"
    if (policy := client.keep_reference()) is not None:
        return policy, "those of the first step now, the others as steps need them"
    if len(missing()) <= FEW_BLOCKS:
        return None, "all before the first step, as few are missing"
    adapter = SecondAdapter(partial(open_start, run))
    try:
        adapter.open()
    except ServiceError:
        raise
    except MintTrainError as error:
        return None, f"all before the first step, as a second adapter is refused: {error}"
    return adapter, "those of the first step now, the others while steps are taken, from a second adapter"


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
