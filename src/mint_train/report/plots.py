"""`mint-train plot`: runs as one picture and one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mint_train.errors import OptionError, UserError
from mint_train.report.curves import read_runs
from mint_train.run_folder.files import cannot_write, write_whole
from mint_train.run_folder.parts import REPORT, REPORT_SUFFIXES

OTHERS = frozenset({".pdf", ".svg", ".jpg", ".jpeg", ".eps", ".ps", ".gif", ".tif", ".tiff", ".webp", ".htm"})
"""Endings that ask for another kind of file."""


def plot_runs(folders: Sequence[Path], output: Path) -> tuple[Path, Path]:
    """Draw runs, one over the other, as a PNG file and as a self-contained HTML page.

    Args:
        folders: run folders, finished or not.
        output: where to write, to which .png and .html are added; it may end in one of them itself.

    Returns:
        The two files.

    Raises:
        UserError: a folder is missing, broken or has no step; matplotlib is not installed.
        OptionError: the output names another kind of file, or a folder that does not exist.
        MintTrainError: a file cannot be written.
    """
    if output.suffix.lower() in OTHERS:
        raise OptionError(f"--output {output}: plots are .png and .html; give {output.with_suffix('')}")
    runs = read_runs(list({folder.resolve(): folder for folder in folders}.values()))
    try:
        from mint_train.report.charts import write_png
        from mint_train.report.page import make_page
    except ModuleNotFoundError as error:
        raise UserError(f"plots need {error.name}: pip install jinja2 matplotlib") from error
    name = str(output.with_suffix("") if output.suffix in REPORT_SUFFIXES else output)
    picture, page = (Path(name + suffix) for suffix in REPORT_SUFFIXES)
    if not output.parent.is_dir():
        raise OptionError(f"--output {output}: the folder {output.parent} does not exist")
    try:
        write_png(runs, picture)
    except OSError as error:
        raise cannot_write(picture, error) from error
    write_whole(page, make_page(runs))
    return picture, page


def report_path(folders: Sequence[Path]) -> Path:
    """Return the default for where a report goes: a single run's folder, else the working directory."""
    return folders[0] / REPORT if len(folders) == 1 else Path(REPORT)
