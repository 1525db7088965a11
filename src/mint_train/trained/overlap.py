"""Whether a policy is evaluated on the rows that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mint_train.errors import MintTrainError
from mint_train.groups.build import Dataset, build_dataset
from mint_train.groups.examples import Examples, find_data, read_examples
from mint_train.groups.held_out import split_examples
from mint_train.groups.overlap import count_overlap
from mint_train.losses.loss import Loss
from mint_train.run_folder.description import SourceDescription
from mint_train.trained.find import Trained


def count_trained_on(
    trained: Trained, loss: Loss, tokenizer: Any, held_out: Examples, dataset: Dataset
) -> int:
    """Count the held-out groups that are in the training data of the run, as far as that can be read.

    Args:
        trained: what is evaluated.
        loss: the loss that evaluates it.
        tokenizer: the base model's.
        held_out: the rows that it is evaluated on.
        dataset: their groups.
    """
    if trained.folder is None:
        return 0
    sources = trained.folder.read_description().data.sources
    own = {source.sha256 for source in sources}
    if trained.settings.eval_fraction is None and all(
        part.data.fingerprint() in own for part in held_out.parts
    ):
        return len(dataset.groups)
    try:
        trained_on = training_data(trained, loss, tokenizer, sources)
        return count_overlap(dataset, trained_on, loss.untrained_datums)
    except MintTrainError:  # the data is gone or has changed, or this loss cannot read it
        return 0


def training_data(
    trained: Trained, loss: Loss, tokenizer: Any, sources: Sequence[SourceDescription]
) -> Dataset:
    """Return the groups that a run was trained on, mostly from the cache.

    Raises:
        MintTrainError: the data cannot be read, or does not suit the loss.
    """
    settings = trained.settings
    data = find_data(settings.data, loss, settings.max_row_bytes)
    if [part.fingerprint() for part in data.parts] != [source.sha256 for source in sources]:
        raise MintTrainError(f"{data} has changed")
    examples = read_examples(data, loss, settings.columns, settings.on_bad_row)
    if settings.eval_fraction is not None:
        examples = split_examples(settings, loss, examples, {})[0]
    return build_dataset(examples, loss, tokenizer, settings)
