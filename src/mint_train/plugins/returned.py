"""What each hook of a loss must return, checked where it returns: a wrong kind of value is one line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from inspect import isclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from mint_train.batches.vocabulary import QUANTITIES
from mint_train.rows.forms import Forms
from mint_train.run_folder.metric import Metric

TEXT = (str, bytes)
SHOWN = 60
"""Characters that are shown of a wrong value."""


class Kind(NamedTuple):
    """A kind of value: as a message calls it, and what tells it."""

    name: str
    suits: Callable[[Any], bool]


def is_sequence_of(*kinds: type) -> Callable[[Any], bool]:
    """Return a test for sequences, other than texts, whose items are of certain kinds."""

    def suits(value: Any) -> bool:
        return (
            isinstance(value, Sequence)
            and not isinstance(value, TEXT)
            and all(isinstance(item, kinds) for item in value)
        )

    return suits


def are_datums(value: Any) -> bool:
    """Return whether a value is a group's datums, at least one."""
    from mint_train.batches.datums import AttachedDatum  # these need torch, and the list of losses does not
    from mint_train.sdk import Datum

    return is_sequence_of(Datum, AttachedDatum)(value) and len(value) > 0


def are_quantities(value: Any) -> bool:
    """Return whether a value names quantities of a distribution over the vocabulary."""
    return isinstance(value, Collection) and not isinstance(value, TEXT) and QUANTITIES.keys() >= set(value)


def are_metrics(value: Any) -> bool:
    """Return whether a value describes metrics."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(metric, Metric) and is_format(metric.format)
        for name, metric in value.items()
    )


def is_format(form: object) -> bool:
    """Return whether a number can be written so."""
    try:
        return bool(format(0.5, form))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


RETURNED: Mapping[str, Kind] = {
    "loss_options": Kind("a pydantic model", lambda v: isclass(v) and issubclass(v, BaseModel)),
    "bundled_rows": Kind("a pathlib.Path", lambda v: isinstance(v, Path)),
    "row_forms": Kind("a Forms", lambda v: isinstance(v, Forms)),
    "datum_names": Kind("a sequence of names", is_sequence_of(str)),
    "link_examples": Kind("the examples", lambda v: isinstance(v, Iterable) and not isinstance(v, TEXT)),
    "flatten": Kind("a sequence of datums, one at least", are_datums),
    "reference": Kind("a name", lambda v: isinstance(v, str)),
    "vocabulary": Kind(f"a collection of names out of {', '.join(QUANTITIES)}", are_quantities),
    "metrics": Kind("a Metric, with a format that writes a number, by each metric's name", are_metrics),
    "data_note": Kind("a line of text", lambda v: isinstance(v, str)),
    "options_note": Kind("a line of text", lambda v: isinstance(v, str)),
}
"""By hook, what it must return where it does not return None; the others return what they like."""


def wrong_kind(hook: str, value: Any) -> str:
    """Say what a hook should have returned, and what it did; nothing where it is right."""
    kind = RETURNED.get(hook)
    if value is None or kind is None or suits(kind, value):
        return ""
    return f"must return {kind.name}, not {shown(value)}"


def suits(kind: Kind, value: Any) -> bool:
    """Return whether a value is of a kind; one that fails when it is looked at is not."""
    try:
        return kind.suits(value)
    except Exception:
        return False


def shown(value: Any) -> str:
    """Return a value as a message shows it: its type, and itself if that is short."""
    try:
        said = " ".join(repr(value).split())
    except Exception:
        said = ""
    kind = type(value).__name__
    named = f"{'an' if kind[0] in 'aeio' else 'a'} {kind}"
    return f"{named} ({said})" if 0 < len(said) <= SHOWN else named
