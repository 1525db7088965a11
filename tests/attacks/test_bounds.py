"""Rows have a largest size, however they are written and compressed, and no pipe or link is read for ever."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mint_train.errors import DataError, MintTrainError
from mint_train.losses.weighted_sum import open_loss
from mint_train.rows.compression import BUFFER, MAX_ROW_BYTES
from mint_train.rows.json_rows import read_json
from mint_train.rows.patterns import matching_files
from mint_train.rows.readers import copy_stream, open_data
from mint_train.rows.row import BadRow, Row
from mint_train.settings.merge import load_settings

pytestmark = pytest.mark.attacks

LIMIT = 1000
GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
LARGE = GOOD | {"chosen": "x" * LIMIT}
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in (GOOD, LARGE, GOOD))
ARRAY = json.dumps([GOOD, LARGE, GOOD], indent=1).encode()


def rows_of(path: Path) -> list[Row | BadRow]:
    return list(open_data(path, LIMIT).rows())


@pytest.mark.parametrize("packed", ["plain", "gzip", "zstd"])
def test_a_line_that_is_too_large_is_a_bad_row(tmp_path: Path, packed: str) -> None:
    path = tmp_path / "rows.jsonl"
    squeeze = {"plain": bytes, "gzip": gzip.compress,
               "zstd": lambda content: pa.Codec("zstd").compress(content, asbytes=True)}[packed]  # fmt: skip
    path.write_bytes(squeeze(LINES))
    rows = rows_of(path)
    assert [type(row) for row in rows] == [Row, BadRow, Row]
    assert str(rows[1]) == f"{path}:2: holds more than 1,000 bytes; --max-row-bytes allows more"
    assert len(list(open_data(path).rows())) == 3


def test_a_row_of_an_array_that_is_too_large_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(json.dumps([GOOD, GOOD | {"chosen": "x" * 3 * BUFFER}]).encode())
    with pytest.raises(DataError, match=r"rows\.json:1: holds more than 1,000 bytes"):
        rows_of(path)


@pytest.mark.parametrize("open_quote", [True, False])
def test_a_row_of_a_table_of_text_that_is_too_large_ends_the_reading(
    tmp_path: Path, open_quote: bool
) -> None:
    path = tmp_path / "rows.csv"
    cell = '"' + "x\n" * LIMIT if open_quote else "x" * LIMIT
    path.write_text(f"prompt,chosen,rejected\np,a,b\np,{cell},b\n")
    with pytest.raises(DataError, match=r"rows\.csv:3: holds more than 1,000 bytes"):
        rows_of(path)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_row_of_a_table_that_is_too_large_is_a_bad_row(tmp_path: Path, ending: str) -> None:
    path, table = tmp_path / f"rows.{ending}", pa.Table.from_pylist([GOOD, LARGE, GOOD])
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    assert [type(row) for row in rows_of(path)] == [Row, BadRow, Row]


class Endless(io.RawIOBase):
    """A file that repeats itself."""

    def __init__(self, begins: bytes, repeats: bytes, size: int) -> None:
        self.begins, self.repeats, self.left = begins, repeats, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.left)
        given = (self.begins + self.repeats * (wanted // len(self.repeats) + 1))[:wanted]
        self.begins = self.begins[wanted:]
        buffer[: len(given)] = given
        self.left -= len(given)
        return len(given)


@pytest.mark.parametrize(
    ("begins", "repeats"),
    [(b"", b"x"), (b'{"prompt": "', b"x"), (b"[", b"["), (b'[{"a": "', b"x"), (b"[", b" "), (b'["', b"\\n"),
     (b"[1", b"1"), (b"", b" ")],
)  # fmt: skip
def test_memory_is_bounded_whatever_a_file_decompresses_to(begins: bytes, repeats: bytes) -> None:
    size = 12_000_000
    tracemalloc.start()
    try:
        count = 0
        with io.BufferedReader(Endless(begins, repeats, size)) as file:
            for _ in read_json(file, "rows", 200_000):
                count += 1
    except DataError:
        pass  # a broken or too large row ends an array
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 4_000_000


def test_an_array_is_read_piece_by_piece_with_its_lines(tmp_path: Path) -> None:
    rows = [{"n": number, "text": "ä€😀" * (number % 50)} for number in range(20_000)]
    path = tmp_path / "rows.json"
    path.write_text("\n\n[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n")
    assert path.stat().st_size > 10 * BUFFER
    with path.open("rb") as file:
        read = list(read_json(file, "rows"))
    assert [row.values for row in read if isinstance(row, Row)] == rows
    assert [row.source.line for row in read] == list(range(4, 4 + len(rows)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [(lambda text: text.replace('"n": 19000', '"n" 19000'), "rows:19003: broken JSON at column 6: Expecting"),
     (lambda text: text.replace('{"n": 19000', '7{"n": 19000'), "rows:19003: broken JSON: expected , or ]"),
     (lambda text: text + "x", "rows:20003: broken JSON: something follows the closing ]"),
     (lambda text: text[:-3], "rows:20002: broken JSON at column")],
)  # fmt: skip
def test_what_breaks_an_array_is_named_by_its_line(change: Callable[[str], str], problem: str) -> None:
    text = "\n\n[" + ",\n".join(f'{{"n": {n}, "x": "{"y" * 30}"}}' for n in range(20_000)) + "]\n"
    with pytest.raises(DataError) as refused:
        list(read_json(io.BytesIO(change(text).encode()), "rows"))
    assert str(refused.value).startswith(problem)


def test_the_limit_is_a_setting(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    assert load_settings({"loss": "dpo"}).max_row_bytes == MAX_ROW_BYTES == 16_000_000
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    arguments = ("--loss", "dpo", "--data", "rows.jsonl", "--dry-run", "--backend", "local")
    ended = run_cli(*arguments, "--max-row-bytes", LIMIT)
    assert ended.status == 2
    assert "holds more than 1,000 bytes" in ended.out
    assert run_cli(*arguments).status == 0


# what can be read only once


def test_a_pipe_is_read_once_and_said_to_be_waited_for(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    rows = "".join(json.dumps(GOOD | {"prompt": f"{n}"}) + "\n" for n in range(4))
    threading.Thread(target=lambda: pipe.write_text(rows), daemon=True).start()
    ended = run_cli("--loss", "dpo", "--data", pipe, "--dry-run", "--backend", "local")
    assert ended.status == 0, ended.err
    assert f"Reading the pipe {pipe} until its writer closes it" in ended.err
    assert "4 rows" in ended.out


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_not_read(device: str) -> None:
    with pytest.raises(DataError, match="is a device"):
        open_data(device)


def test_a_disk_that_fills_while_standard_input_is_copied_is_one_line() -> None:
    class Full(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(28, "No space left on device")

    with pytest.raises(MintTrainError, match=r"standard input cannot be copied to .*: No space left on dev"):
        copy_stream("standard input", Full())


# patterns


def test_a_file_is_read_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b/c.jsonl", "b/d/e.jsonl", ".hidden/x.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(GOOD) + "\n")
    (tmp_path / "b" / "up").symlink_to("..")
    (tmp_path / "b" / "self").symlink_to(".")
    (tmp_path / "b" / "again").symlink_to(".")
    (tmp_path / "z.jsonl").symlink_to("a.jsonl")
    expected = [str(tmp_path / name) for name in ("a.jsonl", "b/c.jsonl", "b/d/e.jsonl")]
    for pattern in ("**/*.jsonl", "**/**/*.jsonl", "**", "*/../**/*.jsonl"):
        assert [os.path.realpath(name) for name in matching_files(str(tmp_path / pattern))] == expected
    assert matching_files(str(tmp_path / "*.jsonl")) == expected[:1]


def test_patterns_match_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import glob

    for name in ("x/1.a", "x/y/2.a", "x/y/3.b", "[z]/4.a", "x/**b/5.a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for pattern in (
        "**/*.a",
        "x/**",
        "x/**/*.a",
        "*/*.a",
        "**/y/*",
        "[[]z]/*",
        "./**/*.b",
        "x/**b/*",
        "none/**",
    ):
        found = sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
        assert [os.path.normpath(name) for name in matching_files(pattern)] == [
            os.path.normpath(name) for name in found
        ], pattern


def test_data_in_a_loop_of_links_trains_each_row_once(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD) + "\n")
    (tmp_path / "loop").symlink_to(".")
    loss = open_loss("dpo", {})
    assert loss is not None
    assert len(list(open_data(str(tmp_path / "**" / "*.jsonl")).rows())) == 1
