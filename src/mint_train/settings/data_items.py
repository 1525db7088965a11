"""What `--data` and `--eval-data` name: sources of rows, perhaps with weights; held-out sets with names."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from mint_train.errors import nearest
from mint_train.settings.wrong_values import described

STANDARD_INPUT = "-"
HUB = {"hf:": False, "hf-stream:": True}
"""Prefixes of data sets on the hub: whether they are streamed."""
KEPT_ROWS = "rows"
"""The folder of a run that holds the rows that a program gave it."""
WEIGHTED = re.compile(r"(?P<name>.+):(?P<weight>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)", re.DOTALL)
NAMED = re.compile(r"(?P<set>[A-Za-z0-9][\w.-]*)=(?P<name>.+)", re.DOTALL)
ROWS_BY = ("__iter__", "itertuples", "iter_rows", "to_batches")
"""How rows of a program are read: an iterable, a frame of pandas or polars, a table of Arrow."""
TABLE = ("name", "weight", "columns")
"""The keys of a source in a config file."""
MAX_WEIGHT = 1e100
"""Far above any weight, and far below where sums of them overflow."""


@dataclass(frozen=True)
class DataItem:
    """One source of rows."""

    name: str
    """A file, a pattern, `-`, a data set of the hub, or what messages call rows given by a program."""
    weight: float | None = None
    """Its share of an epoch, relative to the other weights."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Its own columns, over those of `--columns`."""
    rows: Any = field(default=None, repr=False, compare=False)
    """The rows themselves, where a program gives them."""


DataItems = tuple[DataItem, ...]
HeldOutItems = dict[str, DataItem]
"""By the name of the held-out set, which is "" for a set without a name."""


def wrong(problem: str) -> PydanticCustomError:
    """Return the error that a settings model turns into one line."""
    return PydanticCustomError("data", "{problem}", {"problem": problem})


def parse_data(value: object) -> DataItems:
    """Return the sources that `data` names: `FILE:WEIGHT`, a list of them, or rows.

    Raises:
        PydanticCustomError: it is neither, or only some of the sources have a weight.
    """
    items = tuple(items_of(value))
    weighted = [item for item in items if item.weight is not None]
    if weighted and len(weighted) < len(items):
        without = next(item for item in items if item.weight is None)
        example = shlex.quote(f"{without.name}:0.5")
        raise wrong(f"give each source a weight or none; {without.name} has none (write {example})")
    for item in weighted:
        if not 0 < (item.weight or 0) < MAX_WEIGHT:  # neither is NaN
            bounds = f"above 0 and below {MAX_WEIGHT:g}"
            raise wrong(f"{item.name} has the weight {item.weight:g}; it must be a number {bounds}")
    return items


def is_nothing(value: object) -> bool:
    """Return whether no data is given; a frame compares each of its cells, and so is not compared."""
    return value is None or (isinstance(value, tuple) and not value)


def items_of(value: object) -> list[DataItem]:
    """Return each source that a value names."""
    if is_nothing(value):
        return []
    if isinstance(value, list) and not value:
        raise wrong("is an empty list; give a file or rows")
    if isinstance(value, list | tuple) and (any(map(is_source, value)) or is_meant_as_source(value[0])):
        odd = next((one for one in value if not is_source(one)), None)
        if isinstance(odd, Mapping) and is_meant_as_source(odd):
            raise wrong(problem_of_table(odd))
        if odd is not None:
            raise wrong(f"mixes names of files with {described(odd)}; give (ROWS, WEIGHT) or names only")
        several = len(value) > 1
        return [item_of(one, f"data[{index}]" if several else "data") for index, one in enumerate(value)]
    return [item_of(value, "data")]


def is_source(value: object) -> bool:
    """Return whether a member of a list is a source, not a row."""
    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[1], int | float)
    return isinstance(value, str | Path | DataItem) or is_table(value)


def is_table(value: object) -> bool:
    """Return whether a value is a source as a table of a config file has it."""
    return isinstance(value, Mapping) and isinstance(value.get("name"), str) and value.keys() <= set(TABLE)


def problem_of_table(table: Mapping[Any, Any]) -> str:
    """Return why a table does not name a source, or nothing where it does."""
    if (odd := next((key for key in table if key not in TABLE), None)) is not None:
        hint = nearest(str(odd), TABLE) or f"; there are {', '.join(TABLE)}"
        return f'nothing of a source is called "{odd}"{hint}'
    return "" if is_table(table) else "a source needs its name, as text"


def is_meant_as_source(value: object) -> bool:
    """Return whether a mapping is hardly a row, but a source of which a key is misspelt or missing."""
    if not isinstance(value, Mapping) or is_table(value):
        return False
    return not set(TABLE).isdisjoint(value) and all(nearest(str(key), TABLE) for key in value)


def is_one_held_out(value: Mapping[Any, Any]) -> bool:
    """Return whether a mapping is a held-out source, and not several by the names of their sets."""
    return is_table(value) or ("name" in value and is_meant_as_source(value))


def problem_in_file(name: str, value: object) -> str:
    """Return what is wrong with a setting of a config file, in which each table of data names a source.

    Args:
        name: `data` or `eval_data`.
        value: what the file gives it.
    """
    named = {name: value} if isinstance(value, Mapping) else {}
    if isinstance(value, list):
        named = {f"{name}[{index}]": one for index, one in enumerate(value)}
    elif name == "eval_data" and isinstance(value, Mapping) and not is_one_held_out(value):
        named = {f"{name}.{key}": one for key, one in value.items()}
    problems = {at: problem_of_table(one) for at, one in named.items() if isinstance(one, Mapping)}
    return next((f"{at}: {problem}" for at, problem in problems.items() if problem), "")


def item_of(value: object, called: str) -> DataItem:
    """Return one source: a name, a table, a pair with a weight, or rows."""
    if isinstance(value, DataItem):
        return value
    if isinstance(value, str | Path):
        return weighted_name(str(value))
    if isinstance(value, tuple) and is_source(value):
        return replace(item_of(value[0], called), weight=as_weight(value[1]))
    if isinstance(value, Mapping):
        if is_table(value):
            return item_of_table(value)
        if is_meant_as_source(value):
            raise wrong(problem_of_table(value))
        raise wrong(f"is {described(value)} of {keys_of(value)}; give a list of rows, or one split")
    if not holds_rows(value):
        raise wrong(f"is {described(value)}; give a file, a list of files, or rows")
    return DataItem(called, rows=value)


def holds_rows(value: object) -> bool:
    """Return whether a value of a program may be rows."""
    return not isinstance(value, bytes | Mapping) and any(hasattr(value, name) for name in ROWS_BY)


def item_of_table(table: Mapping[str, Any]) -> DataItem:
    """Return the source that a table of a config file names.

    Raises:
        PydanticCustomError: its weight is not a number, or its columns are not names.
    """
    name, weight, columns = str(table["name"]), table.get("weight"), table.get("columns") or {}
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
        raise wrong(f"{name} has the weight {weight!r}; it must be a number")
    if not isinstance(columns, Mapping) or not all(isinstance(column, str) for column in columns.values()):
        raise wrong(f"the columns of {name} need a table of names")
    return DataItem(name, None if weight is None else as_weight(weight), dict(columns))


def as_weight(number: float) -> float:
    """Return a number as a float, too large a one (an integer without bound) as the first that is refused."""
    return float(min(number, MAX_WEIGHT))


def keys_of(value: Mapping[Any, Any]) -> str:
    """Name the first keys of a mapping."""
    return ", ".join(str(key) for key in list(value)[:4]) or "nothing"


def weighted_name(text: str) -> DataItem:
    """Split `NAME:WEIGHT`; a file whose own name ends in a colon and a number is that file.

    Raises:
        PydanticCustomError: both readings are files.
    """
    found = WEIGHTED.fullmatch(text)
    if found is None:
        return DataItem(text)
    if os.path.exists(text):
        if os.path.exists(found["name"]):
            first = shlex.quote(f"{text}:1")
            raise wrong(f"{text} is a file, and so is {found['name']}; write {first} for the first of them")
        return DataItem(text)
    return DataItem(found["name"], float(found["weight"]))


def parse_held_out(value: object) -> HeldOutItems:
    """Return the held-out sets that `eval_data` names: `[NAME=]FILE`, several of them, or rows.

    Raises:
        PydanticCustomError: it is none of these, or one of several sets has no name or another one's.
    """
    if isinstance(value, Mapping) and not is_one_held_out(value):
        sets = [(str(name), held_out_item(one, f"eval_data {name}".strip())) for name, one in value.items()]
    elif isinstance(value, str | Path):
        sets = [named_set(str(value))]
    elif isinstance(value, list | tuple) and value and all(isinstance(one, str | Path) for one in value):
        sets = [named_set(str(one)) for one in value]
    elif is_nothing(value):
        sets = []
    else:
        sets = [("", held_out_item(value, "eval_data"))]
    return checked_sets(sets)


def checked_sets(sets: Sequence[tuple[str, DataItem]]) -> HeldOutItems:
    """Return held-out sets by name, each with one of its own.

    Raises:
        PydanticCustomError: one of several has none, or two have the same; or a name is not a file name.
    """
    for name, item in sets:
        if len(sets) > 1 and not name:
            stem = re.sub(r"[^\w.-]+", "-", Path(item.name).stem).strip("-.") or "other"
            named = shlex.quote(f"{stem}={item.name}")
            raise wrong(f"each of several held-out sets needs a name; write {named}")
        if name and NAMED.fullmatch(f"{name}=-") is None:
            raise wrong(f'a held-out set cannot be called "{name}"; use letters, digits, ".", "_" and "-"')
        if item.weight is not None:
            raise wrong(f"{item.name} has a weight; held-out sets have none")
    names = [name for name, _ in sets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise wrong(f'two held-out sets are called "{twice}"; give each a name of its own')
    return dict(sets)


def held_out_item(value: object, called: str) -> DataItem:
    """Return the source of a held-out set."""
    return DataItem(str(value)) if isinstance(value, str | Path) else item_of(value, called)


def named_set(text: str) -> tuple[str, DataItem]:
    """Split `NAME=FILE`; a file whose own name has a `=` is that file.

    Raises:
        PydanticCustomError: both readings are files.
    """
    found = NAMED.fullmatch(text)
    if found is None:
        return "", DataItem(text)
    if os.path.exists(text):
        if os.path.exists(found["name"]):
            raise wrong(
                f"{text} is a file, and so is {found['name']}; write {shlex.quote(f'./{text}')} for the first"
            )
        return "", DataItem(text)
    return found["set"], DataItem(found["name"])


def written_item(item: DataItem) -> str | dict[str, Any]:
    """Return a source as a file has it: its name, or a table where there is more to say."""
    plain = item.weight is None and not item.columns
    if plain and WEIGHTED.fullmatch(item.name) is None and NAMED.fullmatch(item.name) is None:
        return item.name
    table = {"name": item.name, "weight": item.weight, "columns": dict(item.columns)}
    return {key: value for key, value in table.items() if value not in (None, {})}


def written_data(items: DataItems) -> object:
    """Return sources as a file has them; a single name alone."""
    written = [written_item(item) for item in items]
    return written[0] if len(written) == 1 and isinstance(written[0], str) else written or None


def written_held_out(sets: HeldOutItems) -> object:
    """Return held-out sets as a file has them; a single one without a name alone."""
    if list(sets) == [""]:
        return written_item(sets[""])
    return {name: written_item(item) for name, item in sets.items()} or None


def absolute_item(item: DataItem) -> DataItem:
    """Return a source under a name that stands wherever a run is resumed from."""
    if item.rows is not None or item.name == STANDARD_INPUT or item.name.startswith(tuple(HUB)):
        return item
    return replace(item, name=os.path.abspath(item.name))


def kept_file(item: DataItem) -> str:
    """Return the name, in a run's folder, of the file that keeps the rows that a program gave."""
    return f"{KEPT_ROWS}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', item.name).strip('-')}.jsonl"


def relocated(item: DataItem, folder: Path) -> DataItem:
    """Return a source that a run's folder keeps by its path there, should that folder have been moved."""
    path = Path(item.name)
    kept = folder / KEPT_ROWS / path.name
    moved = path.parent.name == KEPT_ROWS and not path.exists() and kept.exists()
    return replace(item, name=str(kept)) if moved else item


def read_once(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return rows that several runs can read: those of a generator are there for the first one alone."""
    given = {name: settings[name] for name in ("data", "eval_data") if name in settings}
    return {name: as_lists(value) for name, value in given.items()}


def as_lists(value: Any) -> Any:
    """Return an iterator as a list, also that of a named set or with a weight; anything else as it is."""
    if isinstance(value, Iterator):
        return list(value)
    if isinstance(value, list) and any(isinstance(one, tuple) for one in value):
        return [tuple(map(as_lists, one)) if isinstance(one, tuple) else one for one in value]
    return {name: as_lists(each) for name, each in value.items()} if isinstance(value, dict) else value
