"""Files without readable rows, recognised by their first bytes, and addresses in place of files."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

SAVE_AS_CSV = "save the sheet as CSV (UTF-8)"
UNPACK = "unpack it, and name the file in it"
FIRST_BYTES = {
    b"\xd0\xcf\x11\xe0": f"an old Office file; {SAVE_AS_CSV}",
    b"BZh": f"compressed by bzip2; {UNPACK}",
    b"\xfd7zXZ": f"compressed by xz; {UNPACK}",
    b"7z\xbc\xaf": f"a 7z archive; {UNPACK}",
    b"Rar!": f"a RAR archive; {UNPACK}",
    b"%PDF": "a PDF; rows are read from JSON Lines, JSON, CSV, Parquet and Arrow",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"PAR1": "a Parquet file; give it the suffix .parquet",
    b"ARROW1": "an Arrow file; give it the suffix .arrow",
    b"\x80\x04": "a pickle, which can run code when it is loaded; save the rows as JSON Lines",
}
ZIP = b"PK\x03\x04"
TAR = b"ustar"
TAR_AT = 257
"""Where a tar archive says that it is one."""
BYTES = TAR_AT + len(TAR)
"""First bytes of a file that are needed to recognise its kind."""
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
ON_THE_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/([\w.-]+/[\w.-]+)(?:/.*)?")


def what_it_is(first: bytes, path: Path) -> str:
    """Return what a file is and what to do with it; nothing if it may hold rows.

    Args:
        first: up to `BYTES` of the first bytes, decompressed.
        path: the file.
    """
    if first.startswith(ZIP):
        return kind_of_zip(path)
    if first[TAR_AT:BYTES] == TAR:
        return f"a tar archive; {UNPACK}"
    return next((kind for begins, kind in FIRST_BYTES.items() if first.startswith(begins)), "")


def kind_of_zip(path: Path) -> str:
    """Say what a zip archive is: a workbook is one too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        names = []
    if "xl/workbook.xml" in names:
        return f"an Excel workbook; {SAVE_AS_CSV}"
    if "content.xml" in names and "mimetype" in names:
        return f"an OpenDocument file; {SAVE_AS_CSV}"
    return f"a zip archive; {UNPACK}" + (f": {names[0]}" if len(names) == 1 else "")


def what_address(text: str) -> str:
    """Return what to do where an address is given for a file; nothing for a file."""
    if not ADDRESS.match(text):
        return ""
    on_the_hub = ON_THE_HUB.fullmatch(text)
    if on_the_hub:
        return f"is a data set of the hub; write hf:{on_the_hub[1]}"
    return "is an address, and only files are read; download it first"
