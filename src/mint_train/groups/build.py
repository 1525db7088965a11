"""From examples to groups: flattened in chunks, checked, kept on disk; what does not fit is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mint_train.batches.batch import Batch
from mint_train.batches.groups import Group, Groups
from mint_train.errors import DataError, DoesNotFit, OptionError, PluginError, RowError, Source
from mint_train.garbage import rare_collections
from mint_train.groups.cache_bound import limit_bytes, note_use, remove_oldest
from mint_train.groups.checksums import is_whole, write_checksums
from mint_train.groups.examples import Examples
from mint_train.groups.flattened import check_groups
from mint_train.groups.token_cache import cannot_keep, keep, new_folder, put_away, token_key
from mint_train.groups.token_file import StoredGroups
from mint_train.groups.token_writer import GroupWriter
from mint_train.losses.loss import Loss
from mint_train.rendering.renderer import Renderer
from mint_train.rendering.special_tokens import GuardedTokenizer, SpecialTokens
from mint_train.rows.row import BadRow, Example
from mint_train.settings.cache import cache_folder
from mint_train.settings.model import Settings

CHUNK = 256
"""Examples that are tokenised together; what the tokenizer makes of more falls out of the cache."""
GROUPS_FILE = "groups.arrow"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, slots=True)
class Dataset:
    """The groups that a run trains on."""

    groups: Groups
    left_out: list[str]
    """Examples that `--max-length` leaves with nothing to train: file, line and reason each."""
    bad_rows: tuple[BadRow, ...] = ()
    """Rows that are skipped, as they do not suit the loss or the tokenizer."""
    special: tuple[tuple[Source, str], ...] = ()
    """Rows that are trained on though their text holds a special token, with the first one."""
    markers: tuple[tuple[Source, str], ...] = ()
    """Rows whose text holds a turn marker that is ordinary text to the tokenizer, with the first one."""
    lengths: Sequence[int] = ()
    """Tokens of each group's longest datum."""
    tokens: Sequence[int] = ()
    """Input tokens of each group."""
    by_path: Mapping[str, int] = field(default_factory=dict)
    """Groups made of the rows of each file, in the order of the groups."""
    note: str = ""
    """What the user is told of where the groups come from."""


def build_dataset(
    examples: Examples,
    loss: Loss,
    tokenizer: Any,
    settings: Settings,
) -> Dataset:
    """Flatten all examples and check every group against the loss's contract, or find that done before.

    Memory holds a chunk of examples at a time.

    Args:
        examples: the rows that are read.
        loss: the loss.
        tokenizer: the tokenizer of the model that is trained.
        settings: their length, special tokens and rendering say what the tokens are.

    Raises:
        OptionError: nothing is left to train, or the chat template is missing or has a syntax error.
        DataError: an example does not suit the tokenizer, with file, line and field.
        ContractError: a group breaks the contract, with its file and line.
        UserError: the cache cannot be written to, or its limit is not a number.
    """
    renderer = Renderer.of(settings, tokenizer, settings.max_length)
    key = token_key(describe(examples, renderer, settings.special_tokens), loss, tokenizer)
    kept, note, limit = cache_folder() / key, "", limit_bytes()
    note_use(kept)
    if kept.exists() and not is_whole(kept, GROUPS_FILE, SUMMARY_FILE):
        note = f"The tokenised data in {kept} was broken; it is made anew."
        put_away(kept)
    if not kept.exists():
        kept = write_kept(key, examples, loss, renderer, limit)
    examples.forget_held()
    examples.data.check_unchanged()
    return read_kept(kept, examples, note)


def read_kept(folder: Path, examples: Examples, note: str) -> Dataset:
    """Return the groups of examples that the cache holds, with what is known of them."""
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    unsuited = (BadRow(Source(*source), reason) for *source, reason in summary["unsuited"])
    bad_rows = (*examples.bad_rows, *unsuited)
    special, markers = (
        tuple((Source(*source), text) for *source, text in summary[name]) for name in ("special", "markers")
    )
    groups = StoredGroups(folder / GROUPS_FILE)
    sizes = groups.longest(), groups.inputs()
    return Dataset(groups, summary["left_out"], bad_rows, special, markers, *sizes, summary["by_path"], note)


def write_kept(key: str, examples: Examples, loss: Loss, renderer: Renderer, limit: float) -> Path:
    """Write the groups of examples into the cache, of `limit` bytes, whole or not; return their folder."""
    folder = new_folder()
    try:
        write_groups(folder, examples, loss, renderer)
        examples.data.check_unchanged(content=True)
        write_checksums(folder)
        kept = keep(folder, key)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_keep(error) from error
        raise
    remove_oldest(kept.parent, limit, kept)
    return kept


def describe(examples: Examples, renderer: Renderer, special_tokens: SpecialTokens) -> dict[str, Any]:
    """Collect what of the data and its settings decides the groups."""
    positions = examples.positions
    chosen = None if positions is None else hashlib.sha256(array("q", sorted(positions))).hexdigest()
    return {
        # groups name their file and line
        "sources": [(str(part.data), part.data.fingerprint(), dict(part.columns)) for part in examples.parts],
        "on_bad_row": examples.on_bad_row,
        "max_row_bytes": [part.data.most_bytes for part in examples.parts],
        "positions": chosen,
        "max_length": renderer.max_length,
        "rendering": renderer.rendering.describe(renderer.tokenizer),
        "special_tokens": special_tokens,
    }


@rare_collections()
def write_groups(folder: Path, examples: Examples, loss: Loss, renderer: Renderer) -> None:
    """Flatten and check all examples, chunk by chunk, into a folder."""
    left_out: list[str] = []
    unsuited: list[BadRow] = []
    by_path: Counter[str] = Counter()
    tokenizer: GuardedTokenizer = renderer.tokenizer

    def flatten(value: Any) -> Any:
        return loss.flatten(value, renderer)

    with closing(GroupWriter(folder / GROUPS_FILE)) as writer:
        for chunk in tokenizer.encoded(chunks(related(examples, loss)), flatten):
            groups = list(flatten_chunk(tokenizer.reading(chunk), flatten, left_out, unsuited))
            if unsuited and examples.on_bad_row == "fail":
                raise DataError(str(unsuited[0]))
            if groups:
                check_groups(groups)
                loss.check_batch(Batch(groups))
                writer.write(groups)
                by_path.update(group.source.path for group in groups)
    if not writer.count:
        raise nothing_left(left_out, unsuited)
    skipped = {bad.source for bad in unsuited}
    summary = {
        "left_out": left_out,
        "by_path": by_path,
        "unsuited": [(*astuple(bad.source), bad.reason) for bad in unsuited],
    }
    for name, met in (("special", tokenizer.met), ("markers", tokenizer.markers)):
        summary[name] = [(*astuple(source), text) for source, text in met.items() if source not in skipped]
    (folder / SUMMARY_FILE).write_text(json.dumps(summary), encoding="utf-8")


def nothing_left(left_out: Sequence[str], unsuited: Sequence[BadRow]) -> OptionError:
    """Say why no row can be trained on."""
    if left_out:
        return OptionError(
            f"nothing is left to train: {left_out[0]}, and so for all rows; raise --max-length"
        )
    return OptionError(f"nothing is left to train: {unsuited[0]}, and so for all rows")


def flatten_chunk(
    chunk: Iterable[Example],
    flatten: Callable[[Any], Any],
    left_out: list[str],
    unsuited: list[BadRow],
) -> Iterator[Group]:
    """Yield a group for each example that fits, and note the others."""
    for example in chunk:
        try:
            datums = flatten(example.value)
        except DoesNotFit as reason:
            left_out.append(f"{example.source}: {reason}")
        except RowError as error:
            unsuited.append(BadRow(example.source, str(error)))
        except PluginError as error:
            error.locate(example.source)
            raise
        else:
            yield Group.of(datums, example.source, example.weight)


@dataclass(frozen=True, slots=True)
class Values:
    """What a plugin made of the rows, without their sources; each iteration parses them anew."""

    examples: Examples

    def __iter__(self) -> Iterator[Any]:
        return (example.value for example in self.examples)


def related(examples: Examples, loss: Loss) -> Iterator[Example]:
    """Yield the examples, related to one another where the loss does that.

    Raises:
        PluginError: the loss returned another number of examples.
    """
    if not loss.links_examples:
        yield from examples
        return
    values = iter(loss.link_examples(Values(examples)))
    nothing = object()
    for example in examples:
        if (value := next(values, nothing)) is nothing:
            raise miscounted(loss, "fewer", examples)
        yield replace(example, value=value)
    if next(values, nothing) is not nothing:
        raise miscounted(loss, "more", examples)


def miscounted(loss: Loss, how: str, examples: Examples) -> PluginError:
    """Say that a loss did not return each example that it was to relate."""
    return PluginError(
        f'the loss "{loss.name}": link_examples returned {how} than the {len(examples)} examples; '
        "it must return each, in order"
    )


def chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Cut examples into lists of CHUNK."""
    iterator = iter(examples)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
