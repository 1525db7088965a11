"""Rows that were read before are not read again, and the cache stays within its bound."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from mint_train.errors import DataError, UserError
from mint_train.groups import examples as examples_module
from mint_train.groups import held_out as held_out_module
from mint_train.groups import reading_cache
from mint_train.groups.build import build_dataset
from mint_train.groups.examples import Examples, find_data, read_examples
from mint_train.groups.held_out import split_examples
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.rows import readers
from mint_train.rows.readers import open_data
from mint_train.settings.merge import load_settings
from mint_train.settings.model import Settings

ROWS = [
    {
        "prompt": f"Say {n}.",
        "response_a": f"{n} it is",
        "response_b": f"not {n}, no",
        "winner": "ab"[n % 2],
        "id": n,
    }
    for n in range(10)
]


@pytest.fixture(scope="module")
def dpo() -> Loss:
    return Loss.of(load_plugin("dpo"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINT_TRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reading_cache, "LEAST_BYTES", 0)
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\nbroken\n", encoding="utf-8")
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources whose rows were read."""
    met: list[str] = []
    read = examples_module.read_part_anew

    def noted(data, *others):
        met.append(data.name)
        return read(data, *others)

    monkeypatch.setattr(examples_module, "read_part_anew", noted)
    return met


def read(data: Path, loss: Loss, **more) -> Examples:
    return read_examples(open_data(data), loss, on_bad_row="skip", **more)


def test_rows_are_read_once_and_found_alike(data: Path, dpo: Loss, reads: list[str]) -> None:
    first, second = read(data, dpo), read(data, dpo)

    assert len(reads) == 1
    assert [part.survey for part in second.parts] == [part.survey for part in first.parts]
    assert (second.forms, second.count, second.unread) == (first.forms, first.count, first.unread)
    assert second.bad_rows == first.bad_rows
    assert len(first.bad_rows) == 1
    assert first.unread == {"id": 10}
    assert list(second) == list(first)  # read with the survey that was kept
    assert second.describe() == first.describe()


def test_losses_that_read_alike_share_a_reading_and_other_rows_and_settings_do_not(
    data: Path, dpo: Loss, reads: list[str]
) -> None:
    read(data, dpo)
    read(data, dpo, columns={"prompt": "prompt"})
    read(data, Loss.of(load_plugin("ipo")))
    read_examples(open_data(data, 10_000), dpo, on_bad_row="skip")
    data.write_text(data.read_text(encoding="utf-8").replace("Say 9", "Say 8"), encoding="utf-8")
    read(data, dpo)

    assert len(reads) == 4
    with pytest.raises(DataError, match="broken JSON"):
        read_examples(open_data(data), dpo, on_bad_row="fail")


def test_a_broken_reading_is_made_anew(data: Path, dpo: Loss, reads: list[str], own_cache: Path) -> None:
    first = read(data, dpo)
    (kept,) = (own_cache / "readings").iterdir()
    whole = kept.read_text(encoding="utf-8")

    for broken in (whole.replace('"count": 10', '"count": 11'), whole[: len(whole) // 2], "[]", ""):
        assert broken != whole
        kept.write_text(broken, encoding="utf-8")
        assert read(data, dpo).count == first.count
        assert kept.read_text(encoding="utf-8") == whole
    assert len(reads) == 5


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The shares for which rows to hold out were chosen anew."""
    met: list[float] = []
    choose = held_out_module.hold_out

    def noted(examples, share):
        met.append(share)
        return choose(examples, share)

    monkeypatch.setattr(held_out_module, "hold_out", noted)
    return met


def test_what_is_held_out_is_chosen_once(data: Path, dpo: Loss, choices: list[float]) -> None:
    def held(share: float, *files: Path) -> set[int]:
        settings = load_settings({"loss": "dpo", "data": [*map(str, files)], "eval_fraction": share})
        rows = read_examples(find_data(settings.data, dpo), dpo, on_bad_row="skip")
        trained, held_out = split_examples(settings, dpo, rows, {})
        assert not {*map(said, trained)} & {*map(said, held_out[""])}
        return {*map(said, held_out[""])}

    def said(example) -> str:
        return example.value.prompt

    first = held(0.3, data)
    assert (held(0.3, data), len(first), choices) == (first, 3, [0.3])
    assert len(held(0.4, data)) == 4
    other = data.with_name("others.jsonl")
    other.write_text(data.read_text(encoding="utf-8").replace("Say", "Sing"), encoding="utf-8")
    assert len(held(0.3, data, other)) == 6
    assert len(held(0.3, other)) == 3
    assert choices == [0.3, 0.4, 0.3, 0.3]


def test_small_files_are_read_anew(
    data: Path, dpo: Loss, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_cache, "LEAST_BYTES", data.stat().st_size + 1)
    read(data, dpo)

    assert not own_cache.exists()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts of all rows that were parsed, each time anew."""
    met: list[str] = []
    read_row = Loss.read_row

    def noted(self, row, survey):
        met.append(row["prompt"])
        return read_row(self, row, survey)

    monkeypatch.setattr(Loss, "read_row", noted)
    return met


def test_a_small_file_is_parsed_once_for_its_first_use(
    data: Path, dpo: Loss, parsed: list[str], tokenizer
) -> None:
    examples = read(data, dpo)
    held = list(examples)
    assert len(parsed) == len(ROWS)
    assert [example.source.line for example in held] == [*range(1, len(ROWS) + 1)]

    anew = list(examples)
    assert (anew, len(parsed)) == (held, 2 * len(ROWS))
    assert anew[0].value is not held[0].value  # a plugin may have changed the first one


def test_what_is_held_is_forgotten_where_it_is_not_needed(
    data: Path, dpo: Loss, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_cache, "LEAST_BYTES", data.stat().st_size + 1)
    for _ in range(2):  # the second time the tokens are found
        examples = read(data, dpo)
        assert examples.parts[0].held
        build_dataset(examples, dpo, tokenizer, Settings(loss="any", max_length=100))
        assert not examples.parts[0].held


@pytest.mark.parametrize("kind", ["large", "gzip", "zst", "parquet"])
def test_a_file_that_may_not_fit_into_memory_is_not_held(
    kind: str, data: Path, dpo: Loss, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    rows = data.with_name(f"rows.{kind}")
    text = data.read_bytes()
    if kind == "large":
        monkeypatch.setattr(examples_module, "HELD_BYTES", len(text) - 1)
        rows = data
    elif kind == "gzip":
        rows.write_bytes(gzip.compress(text))
    elif kind == "zst":
        with pa.CompressedOutputStream(str(rows), "zstd") as file:
            file.write(text)
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), rows)

    assert len(list(read(rows, dpo))) == len(ROWS)
    assert len(parsed) == 2 * len(ROWS)


def test_examples_that_are_held_belong_to_the_content_that_was_read(
    data: Path, dpo: Loss, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_cache, "LEAST_BYTES", data.stat().st_size + 1)
    monkeypatch.setattr(readers, "signature", lambda _: None)  # a file system without exact times
    monkeypatch.setattr(readers.DataSource, "text_bytes", lambda _: 0)
    examples = read_examples(open_data(data), dpo, on_bad_row="skip")
    data.write_text(data.read_text(encoding="utf-8").replace("Say 9", "Say 8"), encoding="utf-8")

    with pytest.raises(DataError, match="was changed while it was read"):
        build_dataset(examples, dpo, tokenizer, Settings(loss="any", max_length=100))


def test_a_cache_that_refuses_costs_time_alone(
    data: Path, dpo: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINT_TRAIN_CACHE", str(tmp_path / "file"))

    assert read(data, dpo).count == read(data, dpo).count == 10


def test_what_was_used_longest_ago_goes_first(
    data: Path, dpo: Loss, own_cache: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(max_length: int) -> None:
        build_dataset(read(data, dpo), dpo, tokenizer, Settings(loss="any", max_length=max_length))

    def tokenised() -> set[Path]:
        return {path.parent for path in own_cache.glob("*/groups.arrow")}

    build(100)
    (oldest,) = tokenised()
    os.utime(oldest, (1, 1))
    build(101)
    (second,) = tokenised() - {oldest}
    os.utime(second, (2, 2))
    reference = own_cache / "references" / "of-one"
    reference.mkdir(parents=True)
    os.utime(reference, (3, 3))
    (own_cache / "of-a-plugin").mkdir()
    build(100)  # it is used now
    size = sum(path.stat().st_size for path in oldest.iterdir())
    monkeypatch.setenv("MINT_TRAIN_CACHE_GB", str(2.5 * size / 1e9))
    build(102)

    assert oldest in tokenised()
    assert second not in tokenised()
    assert len(tokenised()) == 2
    assert (own_cache / "of-a-plugin").exists()
    monkeypatch.setenv("MINT_TRAIN_CACHE_GB", "0")
    build(103)
    assert len(tokenised()) == 1
    assert not reference.exists()
    assert not list((own_cache / "readings").iterdir())


@pytest.mark.parametrize("given", ["much", "nan", "-1"])
def test_a_bound_that_is_not_a_number_is_refused(
    given: str, data: Path, dpo: Loss, own_cache: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINT_TRAIN_CACHE_GB", given)

    with pytest.raises(UserError, match=f"MINT_TRAIN_CACHE_GB={given} is not a number of gigabytes"):
        build_dataset(read(data, dpo), dpo, tokenizer, Settings(loss="any", max_length=100))
    assert not list(own_cache.glob("*/groups.arrow"))
    monkeypatch.delenv("MINT_TRAIN_CACHE_GB")
    build_dataset(read(data, dpo), dpo, tokenizer, Settings(loss="any", max_length=100))
    monkeypatch.setenv("MINT_TRAIN_CACHE_GB", given)
    with pytest.raises(UserError, match=f"MINT_TRAIN_CACHE_GB={given}"):  # and nothing is to be written
        build_dataset(read(data, dpo), dpo, tokenizer, Settings(loss="any", max_length=100))
