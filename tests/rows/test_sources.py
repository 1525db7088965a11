"""Where rows come from: every kind of file, shards, standard input, the hub; no row is lost on the way."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mint_train.errors import DataError
from mint_train.rows import arrow_tables
from mint_train.rows.arrow_tables import plain_rows
from mint_train.rows.readers import open_data, read_rows
from mint_train.rows.row import BadRow

ROWS = [
    {"prompt": "What floats?", "chosen": 'Wood, "cork",\nand ice.', "rejected": "Stones"},
    {"prompt": "Wie spät ist es?", "chosen": "Halb drei \u2028 genau.", "rejected": "None"},
    {"prompt": "42", "chosen": "The answer, they say.", "rejected": "NA"},
]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv_text(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def gzipped(content: bytes) -> bytes:
    """Without the time of day, which gzip would write into the bytes and pytest into a test's name."""
    return gzip.compress(content, mtime=0)


def zstandard(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=2)
    return buffer.getvalue()


def arrow(rows: list[dict[str, Any]], new: Callable[..., Any]) -> bytes:
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with new(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


KINDS = {
    "a.jsonl": json_lines,
    "a.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "a.jsonl.gz": lambda rows: gzipped(json_lines(rows)),
    "a.jsonl.zst": lambda rows: zstandard(json_lines(rows)),
    "two members.jsonl.gz": lambda rows: gzipped(json_lines(rows[:1])) + gzipped(json_lines(rows[1:])),
    "two frames.jsonl.zst": lambda rows: zstandard(json_lines(rows[:1])) + zstandard(json_lines(rows[1:])),
    "a.json.gz": lambda rows: gzipped(json.dumps(rows).encode()),
    "no suffix": lambda rows: gzipped(json_lines(rows)),
    "a.csv": csv_text,
    "mark.csv": lambda rows: b"\xef\xbb\xbf" + csv_text(rows),
    "a.tsv": lambda rows: csv_text(rows, "\t"),
    "a.csv.gz": lambda rows: gzipped(csv_text(rows)),
    "a.csv.zst": lambda rows: zstandard(csv_text(rows)),
    "a.parquet": parquet,
    "odd [1] *.parquet": parquet,
    "a.arrow": lambda rows: arrow(rows, pa.ipc.new_stream),
    "file.arrow": lambda rows: arrow(rows, pa.ipc.new_file),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name](ROWS))
    data = open_data(path)
    rows = [row for row in data.rows() if not isinstance(row, BadRow)]
    assert [row.values for row in rows] == ROWS
    assert [row.values for row in read_rows(path)] == ROWS, "a second reading differs"
    assert {row.source.path for row in rows} == {str(path)}
    expected = {".parquet": [1, 2, 3], ".arrow": [1, 2, 3], ".csv": [2, 4, 5], ".tsv": [2, 4, 5]}
    lines = [row.source.line for row in rows]
    kind = next((suffix for suffix in expected if suffix in name), None)
    if kind is not None:
        assert lines == expected[kind]
    elif ".json" in name and ".jsonl" not in name:
        assert lines == ([2, 7, 12] if name == "a.json" else [1, 1, 1])
    else:
        assert lines == [1, 2, 3]
    if kind in (".parquet", ".arrow"):
        assert str(rows[1].source) == f"{path} row 2"


ODD_ROWS = [
    {"a": 1, "b": None, "c": [{"role": "user", "content": "2020-01-01", "name": None}], "d": b"x", "e": None},
    {"a": 2**62, "b": 0.1, "c": [], "d": None, "e": {"f": [1, None], "g": {"h": None}}},
    {"a": -1, "b": float("inf"), "c": None, "d": b"", "e": {"f": None, "g": {"h": [["x"]]}}},
] * 700


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("held", ["many rows", "one row"])
def test_plain_tables_are_read_as_datasets_reads_them(
    form: str, held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.Table.from_pylist(ODD_ROWS).append_column("f", pa.array(range(2100), pa.float32()))
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(table, path, row_group_size=800)
    else:
        with pa.ipc.new_stream(path, table.schema) as file:
            file.write_table(table)
    if held == "one row":
        monkeypatch.setattr(arrow_tables, "MOST_BYTES", 1)
        monkeypatch.setattr(arrow_tables, "MOST_ROWS", 1)
    found = [(row.source.line, row.values) for row in read_rows(path)]

    monkeypatch.setattr(arrow_tables, "is_plain_schema", lambda _: False)
    assert plain_rows(path, form) is None
    assert found == [(row.source.line, row.values) for row in read_rows(path)]
    assert len(found) == 2100


@pytest.mark.parametrize(
    "column",
    [
        pa.array([date(2020, 1, 1)]),
        pa.array(["x"]).dictionary_encode(),
        pa.array([[("x", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([[{"at": date(2020, 1, 1)}]]),
    ],
    ids=str,
)
def test_other_tables_are_left_to_datasets(column: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": column}), path)
    assert plain_rows(path, "parquet") is None


def test_tables_that_datasets_decodes_and_columns_of_one_name_are_left_to_it(tmp_path: Path) -> None:
    def features(kind: str) -> dict[bytes, bytes]:
        made = {"a": {"feature": {"dtype": "string", "_type": kind}, "_type": "List"}}
        return {b"huggingface": json.dumps({"info": {"features": made}}).encode()}

    table = pa.table({"a": [["{}"]]})
    path = tmp_path / "a.parquet"
    for kind, plain in (("Value", True), ("Json", False), ("Image", False)):
        pq.write_table(table.replace_schema_metadata(features(kind)), path)
        assert (plain_rows(path, "parquet") is not None) is plain
    pq.write_table(pa.Table.from_arrays([table["a"]] * 2, names=["a", "a"]), path)
    assert plain_rows(path, "parquet") is None


def test_a_table_that_is_broken_behind_its_first_rows_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [str(n) * 50 for n in range(5000)]}), path, row_group_size=1000)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read: "):
        read_rows(path)


def test_messages_in_parquet(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": None}]
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    assert [row.values for row in read_rows(tmp_path / "a.parquet")] == rows


def test_shards_are_read_in_order_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    Path("data/b.jsonl.gz").write_bytes(gzipped(json_lines(ROWS[1:])))
    Path("data/a.jsonl.gz").write_bytes(gzipped(json_lines(ROWS[:1])))
    Path("data/deep/c.jsonl.gz").write_bytes(gzipped(b""))
    data = open_data("data/*.jsonl.gz")
    assert [str(row.source) for row in data.rows() if not isinstance(row, BadRow)] == [
        "data/a.jsonl.gz:1", "data/b.jsonl.gz:1", "data/b.jsonl.gz:2",
    ]  # fmt: skip
    assert len(read_rows("data/**/*.jsonl.gz")) == 3, "an empty shard among others is no mistake"
    with pytest.raises(DataError, match=r"^other/\*.jsonl: no file matches$"):
        open_data("other/*.jsonl")


def test_a_fingerprint_covers_all_shards(tmp_path: Path) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    one.write_bytes(json_lines(ROWS[:1]))
    two.write_bytes(json_lines(ROWS[1:]))
    data = open_data(str(tmp_path / "*.jsonl"))
    before = data.fingerprint()
    assert len(before) == 64
    assert before not in (open_data(one).fingerprint(), open_data(two).fingerprint())
    two.write_bytes(json_lines(ROWS[2:]))
    assert open_data(str(tmp_path / "*.jsonl")).fingerprint() != before
    assert data.fingerprint() == before  # what is checked and what is recorded are one


def test_a_run_on_shards_is_resumed_and_refused_once_one_changes(
    run_cli: Callable[..., Any], tmp_path: Path, starter_model_folder: Path
) -> None:
    (tmp_path / "1.jsonl").write_bytes(json_lines(ROWS[:1]))
    (tmp_path / "2.jsonl").write_bytes(json_lines(ROWS[1:]))
    given = (
        "--loss",
        "dpo",
        "--model",
        starter_model_folder,
        "--batch-size",
        1,
        "--output",
        "run",
        "--steps",
        2,
    )
    assert run_cli(*given, "--data", "*.jsonl")[0] == 0
    recorded = json.loads(Path("run/run.json").read_text())
    assert recorded["settings"]["data"] == str(tmp_path / "*.jsonl")
    status, out, err = run_cli("resume", "run", "--steps", 3)
    assert (status, err) == (0, "")
    assert "Step 3: " in out
    (tmp_path / "2.jsonl").write_bytes(json_lines(ROWS[2:]))
    status, _, err = run_cli("resume", "run", "--steps", 4)
    assert status == 2
    assert "has changed since this run began" in err


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Make standard input hold bytes."""

    def put(content: bytes) -> None:
        stream = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
        monkeypatch.setattr("sys.stdin", stream)

    return put


@pytest.mark.parametrize("pack", [bytes, gzipped, zstandard])
def test_standard_input(pipe: Callable[[bytes], None], pack: Callable[[bytes], bytes]) -> None:
    pipe(pack(json_lines(ROWS) + b"{broken\n"))
    data = open_data("-")
    for _ in range(2):
        rows = list(data.rows())
        assert [row.values for row in rows if not isinstance(row, BadRow)] == ROWS
        assert str(rows[-1]).startswith("standard input:4: broken JSON")


def test_a_run_on_standard_input_is_resumed_with_the_same_rows_only(
    run_cli: Callable[..., Any], pipe: Callable[[bytes], None], starter_model_folder: Path
) -> None:
    pipe(json_lines(ROWS))
    given = ("--loss", "dpo", "--model", starter_model_folder, "--output", "run", "--steps", 1)
    status, out, _ = run_cli(*given, "--data", "-")
    assert status == 0
    assert "standard input: 3 rows: text prompts with chosen and rejected." in out
    pipe(json_lines(ROWS[:2]))
    status, _, err = run_cli("resume", "run", "--steps", 2)
    assert status == 2
    assert "standard input has changed since this run began" in err
    pipe(json_lines(ROWS))
    assert run_cli("resume", "run", "--steps", 2)[0] == 0


def test_a_terminal_is_not_waited_for(run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    status, _, err = run_cli("--loss", "dpo", "--data", "-")
    assert status == 2
    assert "standard input is a terminal; pipe the rows in" in err


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as it lies on the hub, with two splits; the library keeps its own cache beside it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "pairs"
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "data" / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), folder / "data" / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "  - split: test\n    path: data/test-*\n---\n"
    )
    return folder


def test_bytes_of_a_data_set_are_not_trained_as_python_shows_them(
    run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    rows = [{**row, "chosen": row["chosen"].encode(), "photo": b"\xff"} for row in ROWS]
    (tmp_path / "own/train.parquet").write_bytes(parquet(rows))
    status, _, err = run_cli("--loss", "dpo", "--data", "hf:./own", "--dry-run")
    assert status == 2
    assert 'hf:./own row 1: field "chosen": is not a message' in err
    decoded = next(iter(open_data("hf:./own").rows())).values
    assert decoded["photo"] == {"bytes": "ff"}


@pytest.mark.parametrize("scheme", ["hf", "hf-stream"])
def test_a_data_set_repository(repository: Path, scheme: str) -> None:
    data = open_data(f"{scheme}:{repository}")
    rows = [row for row in data.rows() if not isinstance(row, BadRow)]
    assert [row.values for row in rows] == ROWS
    assert str(rows[2].source) == f"{scheme}:{repository} row 3"
    assert len(read_rows(f"{scheme}:{repository}:test")) == 1
    assert data.fingerprint() == open_data(f"{scheme}:{repository}:train").fingerprint()
    with pytest.raises(DataError, match=r"cannot be read: .*none"):
        open_data(f"{scheme}:{repository}:none")


def test_a_slice_of_a_split(repository: Path) -> None:
    assert [row.values for row in read_rows(f"hf:{repository}:train[1:]")] == ROWS[1:]


@pytest.mark.parametrize("scheme", ["hf", "hf-stream"])
def test_a_hub_that_cannot_be_reached_is_one_line(run_cli: Callable[..., Any], scheme: str) -> None:
    status, out, err = run_cli("--loss", "dpo", "--data", f"{scheme}:nobody/nothing")
    assert (status, out) == (2, "")
    assert err.startswith(f"mint-train: {scheme}:nobody/nothing: cannot be read: ")
    assert err.count("\n") == 1


BROKEN = {
    "a.csv": [
        (b'prompt,chosen,rejected\n"never closed,a,b\n', "a.csv:2: broken CSV"),
        (b"prompt,prompt\na,b\n", "a.csv:1: the header names a column twice"),
        (b"prompt,chosen\n\xe9,a\n", "a.csv:2: not UTF-8 (byte 0xe9)"),
        (b"prompt,chosen,rejected\n", "a.csv: the file holds no rows"),
        (b"", "a.csv: the file holds no rows"),
    ],
    "a.parquet": [(b"PAR1 or not", "a.parquet: cannot be read: "), (b"", "a.parquet: cannot be read: ")],
    "a.arrow": [
        (b"ARROW1 or not", "a.arrow: cannot be read: "),
        # without the mark of its end: a reader finds whole batches, and no more
        (arrow(ROWS, pa.ipc.new_stream)[:-8], "a.arrow: the stream has no end: "),
        (arrow(ROWS, pa.ipc.new_stream) * 2, "something follows the end of the stream"),
    ],
    "a.jsonl.gz": [
        (gzipped(json_lines(ROWS))[:-9], "a.jsonl.gz: cannot be read "),
        (gzipped(json_lines(ROWS)) + b"more", "a.jsonl.gz: cannot be read "),
        (gzipped(b""), "a.jsonl.gz: the file holds no rows"),
    ],
    "a.jsonl.zst": [
        (zstandard(json_lines(ROWS))[:-1], "a.jsonl.zst: cannot be read "),
        (zstandard(json_lines(ROWS)) + b"more", "a.jsonl.zst: cannot be read "),
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "message"), [(name, *case) for name, cases in BROKEN.items() for case in cases]
)
@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_a_broken_file_is_one_line(
    run_cli: Callable[..., Any], tmp_path: Path, name: str, content: bytes, message: str, on_bad_row: str
) -> None:
    """Also where bad rows may be skipped: who knows how many rows a broken file has lost."""
    (tmp_path / name).write_bytes(content)
    status, out, err = run_cli("--loss", "dpo", "--data", name, "--on-bad-row", on_bad_row)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_row_of_a_csv_with_too_many_cells_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,chosen\n"two\nlines",a\nb,c,d\n\ne\nf,g\n')
    rows = list(open_data(tmp_path / "a.csv").rows())
    assert [row.source.line for row in rows] == [2, 4, 6, 7]
    assert [str(row).partition(": ")[2] for row in rows if isinstance(row, BadRow)] == [
        "holds 3 cells; the header names 2 columns",
        "holds 1 cells; the header names 2 columns",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1},\n{"a": 2}\n', "column 9: a comma follows the row; JSON Lines have none between rows"),
        ('{"a": 1,}\n', "a comma stands before the closing bracket; leave it out"),
        ('{"a": [1,]}\n', "a comma stands before the closing bracket; leave it out"),
        ("{'a': 1}\n", "column 2: single quotes; JSON takes double ones"),
        ('[\n{"a": 1,}\n]', "a comma stands before the closing bracket; leave it out"),
        ('{"a": 1} {"a": 2}\n', "column 10: Extra data"),
        ('{"a": 1', "column 8: Expecting ',' delimiter"),
    ],
)
def test_a_common_mistake_in_json_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(said)):
        read_rows(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "prompt;chosen\nb;c\n", "by semicolons, not commas"),
        ("a.csv", "prompt\tchosen\nb\tc\n", "by tabs, not commas"),
        ("a.tsv", "prompt,chosen\nb,c\n", "by commas, not tabs"),
    ],
)
def test_a_file_with_another_delimiter_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}:1: the only column is .*: it is separated {said}; save it"):
        list(open_data(tmp_path / name).rows())


def test_a_long_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\n" + "x" * 500_000 + "\n")
    (row,) = read_rows(tmp_path / "a.csv")
    assert len(row.values["prompt"]) == 500_000


# bad rows


def test_skipped_rows_are_counted_shown_and_listed(
    run_cli: Callable[..., Any], tmp_path: Path, starter_model_folder: Path
) -> None:
    bad = [
        b"{broken\n",
        b'{"prompt": "p", "chosen": "a"}\n',
        b"3\n",
        b'{"prompt": "\xe9"}\n',
        b"[]\n",
        b"{}\n",
    ]
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS[:1]) + b"".join(bad) + json_lines(ROWS[1:]))
    given = (
        "--loss",
        "dpo",
        "--data",
        "a.jsonl",
        "--model",
        starter_model_folder,
        "--output",
        "run",
        "--steps",
        1,
    )
    status, out, err = run_cli(*given)
    assert (status, out) == (2, "")
    assert err.startswith("mint-train: a.jsonl:2: broken JSON at column 2")
    status, out, err = run_cli(*given, "--on-bad-row", "skip")
    assert (status, err) == (0, "")
    assert "a.jsonl: 3 rows: text prompts" in out
    assert "Skipped, as dpo cannot use them: 6" in out
    assert '  a.jsonl:3: field "rejected": missing' in out
    assert "  ... and 1 more, listed in skipped_rows.jsonl" in out
    listed = [json.loads(line) for line in Path("run/skipped_rows.jsonl").read_text().splitlines()]
    assert [(line["path"], line["line"]) for line in listed] == [("a.jsonl", place) for place in range(2, 8)]
    assert all(line["reason"] for line in listed)
    recorded = json.loads(Path("run/run.json").read_text())["data"]
    assert (recorded["rows"], recorded["skipped"], recorded["groups"]) == (3, 6, 3)
    # and a new run without bad rows leaves no list of the old ones
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS))
    assert run_cli(*given, "--overwrite")[0] == 0
    assert not Path("run/skipped_rows.jsonl").exists()


def test_no_good_row_is_refused(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}\n" * 3)
    status, _, err = run_cli("--loss", "dpo", "--data", "a.jsonl", "--on-bad-row", "skip")
    assert status == 2
    assert err.startswith("mint-train: a.jsonl:1: ")
    assert err.endswith("; none of the 3 rows is good\n")


def test_a_row_that_does_not_suit_the_tokenizer_is_skipped_too(
    run_cli: Callable[..., Any], tmp_path: Path, starter_model_folder: Path
) -> None:
    row = {"prompt_tokens": [1, 2], "completion_tokens": [3], "old_logprobs": [-1.0], "advantage": 1.0}
    (tmp_path / "a.jsonl").write_bytes(json_lines([row, row | {"completion_tokens": [10_000_000]}]))
    given = (
        "--loss", "policy-gradient", "--data", "a.jsonl", "--model", starter_model_folder, "--output", "run",
        "--steps", 1,
    )  # fmt: skip
    status, _, err = run_cli(*given)
    assert status == 2
    assert 'a.jsonl:2: field "completion_tokens": token 10000000 is beyond' in err
    assert run_cli(*given, "--on-bad-row", "skip").status == 0
    assert json.loads(Path("run/skipped_rows.jsonl").read_text())["line"] == 2
