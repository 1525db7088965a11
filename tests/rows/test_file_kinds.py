"""What is no file of rows is named as what it is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest

from mint_train.errors import DataError
from mint_train.rows.readers import read_rows

ROW = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


def zipped(*names: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name in names:
            archive.writestr(name, ROW)
    return written.getvalue()


def tarred(mode: str) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("rows.jsonl")
        entry.size = len(ROW)
        archive.addfile(entry, io.BytesIO(ROW))
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped("xl/workbook.xml", "xl/styles.xml"), "an Excel workbook; save the sheet as CSV (UTF-8)"),
        (zipped("mimetype", "content.xml"), "an OpenDocument file; save the sheet as CSV (UTF-8)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Office file; save the sheet as CSV (UTF-8)"),
        (zipped("rows.jsonl"), "a zip archive; unpack it, and name the file in it: rows.jsonl"),
        (zipped("a.jsonl", "b.jsonl"), "a zip archive; unpack it, and name the file in it"),
        (zipped()[:10], "a zip archive"),
        (tarred("w"), "a tar archive; unpack it, and name the file in it"),
        (tarred("w:gz"), "a tar archive; unpack it, and name the file in it"),
        (bz2.compress(ROW), "compressed by bzip2; unpack it"),
        (lzma.compress(ROW), "compressed by xz; unpack it"),
        (b"PAR1" + bytes(9), "a Parquet file; give it the suffix .parquet"),
        (b"\x80\x04\x95", "a pickle, which can run code"),
        (b"%PDF-1.7", "a PDF; rows are read from"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.data"
    path.write_bytes(content if content[:2] != b"PK" or len(content) > 10 else b"PK\x03\x04" + content)
    with pytest.raises(DataError) as refused:
        read_rows(path)
    assert str(refused.value).startswith(f"{path} is {said}")


@pytest.mark.parametrize("content", [ROW, gzip.compress(ROW), b"\xef\xbb\xbf" + ROW])
def test_a_file_of_rows_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.data"
    path.write_bytes(content)
    assert len(read_rows(path)) == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://example.com/rows?x=1", "is an address, and only files are read; download it first"),
        ("s3://bucket/rows.jsonl", "is an address, and only files are read; download it first"),
        ("https://huggingface.co/datasets/org/name", "is a data set of the hub; write hf:org/name"),
        ("https://hf.co/datasets/org/name/tree/main", "is a data set of the hub; write hf:org/name"),
    ],
)  # fmt: skip
def test_an_address_is_no_file(address: str, said: str) -> None:
    with pytest.raises(DataError) as refused:
        read_rows(address)
    assert str(refused.value) == f"{address} {said}"
