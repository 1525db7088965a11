"""Two thousand mangled files of all forms: no traceback, and no row lost without being counted."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mint_train.errors import DataError
from mint_train.groups.examples import Examples, read_examples
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.rows.readers import open_data

FILES = Path(__file__).parent / "files"
LOSS_OF = {"kto": "kto", "ranked": "listmle"}
FILES_A_SEED = 100
SEEDS = 20
SNIPPETS = [
    b"", b"{", b"}", b"[", b"]", b",", b":", b'"', b'""', b"\n", b"\r\n", b"\\", b"\\u", b"\\ud800",
    b"\x00", b"\xff",
    b"\xe2\x80\xa8", b"null", b"true", b"7", b"-1e999", b"[]", b"{}", b'{"role": "user"}', b"\n\nHuman: ",
    b"\n\nAssistant: ", b"prompt", b"chosen", b"rejected", b"instruction", b"label", b"a,b", b"\t", b" " * 50,
]  # fmt: skip


@pytest.fixture(scope="module")
def losses() -> dict[str, Loss]:
    return {name: Loss.of(load_plugin(name)) for name in ("dpo", "kto", "listmle")}


def mangle(content: bytes, dice: random.Random) -> bytes:
    """Cut, overwrite, insert, repeat or swap a few pieces."""
    mangled = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(mangled) + 1)
        length = dice.choice([0, 1, 1, 2, 5, 20, 200])
        piece = dice.choice(
            [
                dice.choice(SNIPPETS),
                bytes(mangled[place : place + length]) * 2,
                dice.randbytes(dice.randint(0, 3)),
            ]
        )
        mangled[place : place + length] = piece
    return bytes(mangled)


def rename_fields(content: bytes, dice: random.Random) -> bytes:
    """Give a file other fields, of another form or none, or other values."""
    words = [
        b"prompt",
        b"chosen",
        b"rejected",
        b"conversations",
        b"instruction",
        b"output",
        b"label",
        b"completion",
    ]
    return content.replace(dice.choice(words), dice.choice(words))


def packed(content: bytes, dice: random.Random) -> tuple[bytes, str]:
    """Compress some files, and mangle the compressed bytes of some."""
    how = dice.random()
    if how < 0.8:
        return content, ""
    if how < 0.9:
        squeezed, ending = gzip.compress(content, 1, mtime=0), ".gz"
    else:
        squeezed, ending = bytes(pa.Codec("zstd").compress(content, asbytes=True)), ".zst"
    return (mangle(squeezed, dice) if dice.random() < 0.5 else squeezed), ending


def count_rows(path: Path) -> int | None:
    """How many rows a readable text file holds, counted without our readers; None where it is not plain."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if path.suffix in (".gz", ".zst", ".csv"):
        return None
    if content.lstrip().startswith(b"["):
        # between rows our reader takes any white space, Python's parser only that of JSON
        text = "".join(" " if character.isspace() else character for character in content.decode())
        return len(json.loads(text))
    return sum(1 for line in content.split(b"\n") if line.strip())


def read(path: Path, loss: Loss) -> tuple[int, Examples | None, str]:
    """Count a file's rows and read its examples, or say why it is refused; any other error fails the test."""
    data = open_data(path)
    try:
        return sum(1 for _ in data.rows()), read_examples(data, loss, on_bad_row="skip"), ""
    except DataError as error:
        return 0, None, str(error)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_mangled_files(tmp_path: Path, losses: dict[str, Loss], seed: int) -> None:
    dice = random.Random(seed)
    sources = sorted(FILES.iterdir())
    good_files = refused_files = 0
    for number in range(FILES_A_SEED):
        source = dice.choice(sources)
        content = source.read_bytes()
        if dice.random() < 0.3:
            content = rename_fields(content, dice)
        if dice.random() < 0.9:
            content = mangle(content, dice)
        content, ending = packed(content, dice)
        path = tmp_path / f"{number}-{source.name}{ending}"
        path.write_bytes(content)
        loss = losses[LOSS_OF.get(source.name.partition(".")[0].partition("_")[0], "dpo")]
        seen, examples, problem = read(path, loss)
        if examples is None:
            refused_files += 1
            assert problem.startswith(str(path))
            assert "\n" not in problem
            continue
        good_files += 1
        assert len(examples) + len(examples.bad_rows) == seen, "a row was lost"
        assert sum(1 for _ in examples) == len(examples) == sum(examples.forms.values())
        assert all("\n" not in str(bad.source) and bad.reason for bad in examples.bad_rows)
        expected = count_rows(path)
        assert expected is None or expected == seen, "a row was lost in reading"
        assert len({(bad.source.path, bad.source.line) for bad in examples.bad_rows}) == len(
            examples.bad_rows
        )
    assert good_files > 20
    assert refused_files > 5


def test_rows_behind_unusual_white_space_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('\v[{"a": 1},\f{"a": 2}\u2028]', encoding="utf-8")
    assert count_rows(path) == sum(1 for _ in open_data(path).rows()) == 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_mangled_tables(tmp_path: Path, losses: dict[str, Loss], seed: int, form: str) -> None:
    dice = random.Random(seed)
    rows = [json.loads(line) for line in (FILES / "chat.jsonl").read_text(encoding="utf-8").splitlines()]
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    if form == "parquet":
        pq.write_table(table, buffer)
    else:
        with pa.ipc.new_stream(buffer, table.schema) as writer:
            writer.write_table(table)
    path = tmp_path / f"a.{form}"
    for _ in range(5):
        path.write_bytes(mangle(buffer.getvalue(), dice))
        _, examples, problem = read(path, losses["dpo"])
        if examples is None:
            assert problem.startswith(str(path))
            assert "\n" not in problem
        else:
            assert len(examples) + len(examples.bad_rows) == len(rows)


def test_a_mangled_file_is_refused_by_the_program_in_one_line(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    dice = random.Random(0)
    content = (FILES / "hh.jsonl").read_bytes()
    for _ in range(30):
        (tmp_path / "a.jsonl").write_bytes(mangle(content, dice)[:-40])
        status, out, err = run_cli("--loss", "dpo", "--data", "a.jsonl")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("mint-train: a.jsonl")
