"""From a run to the groups that it trains on, with their reference, and what the user is told about them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate

from mint_train.backends.base import TrainingClient
from mint_train.backends.closing import closed_on_failure
from mint_train.backends.start import other_rendering
from mint_train.batches.batch import Batch
from mint_train.batches.datums import input_length
from mint_train.errors import DataError, ServiceError, counted
from mint_train.groups.build import Dataset, build_dataset
from mint_train.groups.completions import PromptRenderer, render_prompts
from mint_train.groups.examples import Examples
from mint_train.groups.expected_tokens import ExpectedTokens
from mint_train.groups.order import Order
from mint_train.groups.overlap import count_overlap, overlap_note
from mint_train.groups.reference import INITIAL
from mint_train.groups.reference_ahead import LogprobsAhead
from mint_train.groups.shares import shares_of
from mint_train.groups.step_count import count_steps
from mint_train.rendering.notes import rendering_notes
from mint_train.rendering.options import Rendering
from mint_train.rendering.special_tokens import TAKEN
from mint_train.rendering.turn_markers import markers_note
from mint_train.run_folder.description import QuantizationDescription
from mint_train.run_folder.parts import RUN_FILE, SKIPPED_FILE
from mint_train.training.budget import TokenBudget
from mint_train.training.references import add_reference
from mint_train.training.run import Run
from mint_train.training.watching import Watcher

SHOWN_LEFT_OUT = 5
QUANTIZATION_TEXTS, QUANTIZATION_TOKENS = 8, 1024
"""Groups and tokens that show what quantised weights change: two forwards take part of a step's time."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts to reach a service; the first pause is 2 s, and each one doubles."""


@dataclass(frozen=True)
class Prepared:
    """What a run trains on, and the client that trains it."""

    client: TrainingClient
    """Its adapter has not been trained yet."""
    dataset: Dataset
    held_out: Mapping[str, Dataset]
    """By the name of the held-out set."""
    expected: ExpectedTokens
    """What it will send, step by step."""
    watcher: Watcher | None = None
    """Completes the prompts of `--sample-prompts`."""
    ahead: LogprobsAhead | None = None
    """Computes reference logprobs while steps are taken."""
    quantization: QuantizationDescription | None = None
    """What quantised weights change; None where there are none, and where a resume has it recorded."""

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        return self.expected.steps

    @property
    def order(self) -> Order:
        """Which groups make up which step."""
        return self.expected.order


def prepare(run: Run) -> Prepared:
    """Open a client and prepare the data with it; if the service then fails, retry with another client.

    Raises:
        MintTrainError: the data does not suit the loss or the model, or the backend failed too often.
    """
    # a resumed run needs the adapter that it began with only as its reference
    at_start = run.checkpoint is None or run.loss.reference == INITIAL
    client = run.open_client(at_start=at_start)
    if client.gradients.note:
        run.observers.notice(client.gradients.note)
    if run.settings.grad_clip and not client.gradients.clips:
        run.observers.notice("--grad-clip has no effect: the service does not clip gradients.")
    if client.gradients.layers_note:
        run.observers.notice(client.gradients.layers_note)
    for retry in range(1, run.settings.max_retries + 1):
        try:
            with closed_on_failure(client):
                return prepare_with(run, client)
        except ServiceError as error:
            run.observers.hook.run_rolled_back(step=0, problem=str(error))
            time.sleep(pause_seconds(retry))
            client = run.open_client(at_start=at_start)
    with closed_on_failure(client):
        return prepare_with(run, client)


def pause_seconds(failures: int) -> float:
    """Return how long to wait after a number of failures in a row."""
    return float(min(2**failures, LONGEST_PAUSE))


def prepare_with(run: Run, client: TrainingClient) -> Prepared:
    """Flatten and check the data, add the reference if the loss needs one, and tell the user about it."""
    run.observers.notice(f"{run.examples.describe()}.")
    for note in run.loss.options_notes():
        run.observers.notice(note)
    if run.start_from is not None:
        run.observers.notice(f"Begins with the adapter {run.start_from.path}.")
        if run.recorded is None and (note := other_rendering(run.settings)):
            run.observers.notice(note)
    for note in rendering_notes(client.get_tokenizer(), Rendering.of(run.settings)):
        run.observers.notice(note)
    dataset = flattened(run, run.examples, client)
    held_out = {name: flattened(run, examples, client) for name, examples in run.held_out.items()}
    overlaps = overlap_lines(run, dataset, held_out)
    watcher = watcher_of(run, client)
    expected = expect_tokens(run, dataset, held_out, watcher)
    check_budget_and_prices(run, expected)
    run.folder.write_skipped([bad.describe() for bad in dataset.bad_rows])
    quantization = quantization_of(run, client, dataset)
    ahead = None
    if run.loss.reference is not None:
        dataset, held_out, ahead = add_reference(run, client, expected, dataset, held_out)
    if run.loss.vocabulary:
        client.give_vocabulary(run.loss.vocabulary)
    prepared = Prepared(client, dataset, held_out, expected, watcher, ahead, quantization)
    with nullcontext() if ahead is None else closed_on_failure(ahead):
        for line in [*data_lines(run, prepared), *overlaps]:
            run.observers.notice(line)
    return prepared


def quantization_of(run: Run, client: TrainingClient, dataset: Dataset) -> QuantizationDescription | None:
    """Measure on some rows how far quantised weights move logprobs, and tell the user."""
    if run.settings.quantize is None or run.recorded is not None:
        return None
    texts = [datum for group in dataset.groups[:QUANTIZATION_TEXTS] for datum in group.datums]
    lengths = accumulate(map(input_length, texts))
    fitting = [text for text, length in zip(texts, lengths, strict=True) if length <= QUANTIZATION_TOKENS]
    found = client.quantization(fitting or texts[:1])
    if found is not None:
        run.observers.notice(
            f"Weights in {run.settings.quantize}: the logprobs of {counted(found.tokens, 'token')} of "
            f"{counted(found.texts, 'text')} are {found.mean:.2g} nats off on average, "
            f"{found.largest:.2g} at most."
        )
    return found


def expect_tokens(
    run: Run, dataset: Dataset, held_out: Mapping[str, Dataset], watcher: Watcher | None
) -> ExpectedTokens:
    """Decide which groups make up which step, and count what the run will send."""
    settings, groups = run.settings, len(dataset.groups)
    shares = shares_of(run.examples.data, dataset.by_path)
    return ExpectedTokens(
        settings,
        count_steps(settings, groups),
        order=Order.of(settings, groups, dataset.lengths, shares),
        trained=dataset.tokens,
        held_out=sum(sum(part.tokens) for part in held_out.values()),
        prompts=[len(tokens) for tokens in watcher.readable.tokens] if watcher else [],
        referenced=run.loss.reference is not None,
        linear=run.loss.is_linear,
    )


def check_budget_and_prices(run: Run, expected: ExpectedTokens) -> None:
    """Refuse a budget without room for the next step, and prices that lack a kind of the run's tokens.

    Raises:
        OptionError: before anything is sent.
    """
    finished = run.checkpoint.step if run.checkpoint else 0
    if run.prices is not None:
        run.prices.require([*run.counts.by_kind, *expected.after(finished)])
    TokenBudget(run.settings.token_budget, run.counts, expected).refuse_no_step(finished)


def watcher_of(run: Run, client: TrainingClient) -> Watcher | None:
    """Render the prompts of `--sample-prompts`, and tell the user which are completed and when.

    Raises:
        DataError: the rendering refuses a prompt, or none can be completed.
    """
    watching = run.watching
    if watching is None:
        return None
    renderer = PromptRenderer(run.settings, client.get_tokenizer())
    try:
        readable = render_prompts(renderer, watching.prompts, client.window)
    except DataError as error:
        error.locate("--sample-prompts")
        raise
    run.observers.notice(
        f"Samples: {counted(len(readable.prompts), 'prompt')} of {run.settings.sample_prompts}, completed "
        f"before the first step, every {counted(watching.every, 'step')}, and after the last."
    )
    for line in [*readable.lines(), *(f"Skipped: {bad}" for bad in watching.prompts.bad_rows)]:
        run.observers.notice(line)
    return Watcher(watching, renderer, readable, run.folder.path, run.observers, run.counts)


def flattened(run: Run, examples: Examples, client: TrainingClient) -> Dataset:
    """Return the groups of some examples, checked."""
    return build_dataset(examples, run.loss, client.get_tokenizer(), run.settings)


def data_lines(run: Run, prepared: Prepared) -> list[str]:
    """Say which part of the data is trained, what is left out or held out, and what the loss notes."""
    dataset, held_out = prepared.dataset, prepared.held_out
    size = prepared.order.batch_size
    groups = f"{counted(len(dataset.groups), 'group')}, {counted(prepared.steps, 'step')} of at most {size}."
    first = Batch(dataset.groups.take(prepared.order.step(1)))
    lines = [
        *[part.note for part in (dataset, *held_out.values()) if part.note],
        groups,
        *[share.describe() for share in prepared.order.shares],
        *some(f"Skipped, as {run.loss.name} cannot use them", dataset.bad_rows, SKIPPED_FILE),
        *some("Left out, as --max-length leaves nothing to train", dataset.left_out, RUN_FILE),
        *some(
            f"Text with a special token, taken {TAKEN.get(run.settings.special_tokens)} (--special-tokens)",
            [f"{source}: {token}" for source, token in dataset.special],
            RUN_FILE,
        ),
        *markers_note(dataset.markers),
        *run.loss.data_notes(first),
    ]
    for name, part in held_out.items():
        left_out = len(part.left_out)
        note = f", and {left_out} left out, listed in run.json" if left_out else ""
        in_set = f" in {name}" if name else ""
        lines.append(f"{counted(len(part.groups), 'group')} held out{in_set}{note}.")
    return lines


def overlap_lines(run: Run, dataset: Dataset, held_out: Mapping[str, Dataset]) -> list[str]:
    """Say which held-out sets hold rows that are trained on; a share of the data holds none."""
    if run.settings.eval_fraction is not None:
        return []
    untrained = run.loss.untrained_datums
    notes = [
        overlap_note(count_overlap(part, dataset, untrained), len(part.groups), name)
        for name, part in held_out.items()
    ]
    return [note for note in notes if note]


def some(title: str, lines: Sequence[object], listed: str) -> list[str]:
    """Say how many there are, the first few of them, and where the others are listed; nothing for none."""
    if not lines:
        return []
    more = len(lines) - SHOWN_LEFT_OUT
    return [
        f"{title}: {len(lines)}",
        *(f"  {line}" for line in lines[:SHOWN_LEFT_OUT]),
        *([f"  ... and {more} more, listed in {listed}"] if more > 0 else []),
    ]
