"""Reports: what they show of runs, that they need nothing else, and how they look in a browser."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_files import run_description

from mint_train.errors import UserError
from mint_train.report.curves import read_run
from mint_train.report.plots import plot_runs
from mint_train.report.result import result_sentences
from mint_train.run_folder.description import HeldOutDescription
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.records import Evaluation, StepRecord

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VOID = {"meta", "link", "br", "img", "hr", "input"}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder: `make_run(name, steps=..., evaluated=..., **settings)`."""

    def make(name: str, steps: int = 5, evaluated: bool = False, **settings: Any) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        folder = RunFolder(path)
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"prompt": "Is <b>bold</b> & true?", "chosen": "Yes.", "rejected": "No."}\n')
        beta = settings.pop("beta", 0.1)
        held_out = settings.setdefault("eval_data", str(rows))
        described = run_description(steps=steps, settings={"loss": "dpo", "lr": 1e-5, "seed": 0, **settings})
        losses = [loss.model_copy(update={"options": {"beta": beta}}) for loss in described.losses]
        data = described.data
        if held_out:
            digest = hashlib.sha256(Path(held_out).read_bytes()).hexdigest()
            described_rows = HeldOutDescription(path=held_out, sha256=digest, groups=1, left_out=[])
            data = data.model_copy(update={"held_out": [described_rows]})
        folder.write_description(described.model_copy(update={"losses": losses, "data": data}))
        for step in range(1, steps + 1):
            metrics = {"loss": 0.7 / step, "pair_accuracy": 0.5 + step / 1000, "mean_margin": step / 10}
            folder.append_step(StepRecord(step, metrics, 1e-5, 100, 0.25 if step == steps else 0.5))
        if evaluated:
            own = ({"source": f"{rows}:1", "metrics": {"loss": 0.3}},)
            folder.append_evaluation(Evaluation(steps, 1, {"loss": 0.3}, {"loss": (0.2, 0.4)}, (), own))
        return path

    return make


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would fetch or show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.marked: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [given[name] for name in ("src", "href", "xlink:href", "data") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag == "tr":
            self.rows.append([])
            if given.get("class") == "differs":
                self.marked.append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_a_report_of_one_run_goes_into_its_folder(
    run_cli: Callable[..., Any], make_run: Callable[..., Path]
) -> None:
    make_run("one", evaluated=True, batch_size=4)
    status, out, err = run_cli("plot", "one")
    assert (status, err) == (0, "")
    assert out == "Wrote one/report.png\nWrote one/report.html\n"
    with Image.open("one/report.png") as picture:
        assert picture.width >= 1600
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 100
    text = Path("one/report.html").read_text()
    page = Page(text)
    assert all(target.startswith("#") for target in page.fetched), page.fetched
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", text)
    assert "<script" not in text
    assert len(page.ids) == len(set(page.ids)), "two charts share an id"
    cells = {row[0]: row[1:] for row in page.rows}
    assert cells["loss (nats)"] == ["0.14"]
    assert cells["loss (nats), held out"] == ["0.3 [0.2, 0.4]"]
    assert cells["speed (tokens/s)"] == ["400"]
    assert cells["options.beta"] == ["0.1"]
    assert not page.marked
    for axis in ("optimiser step", "loss (nats)", "pair accuracy (share, 0 to 1)", "speed (tokens/s)"):
        assert f">{axis}</text>" in text
    assert "Is &lt;b&gt;bold&lt;/b&gt; &amp; true?" in text, "the example's text is not escaped or not there"
    assert "Constant, and not drawn: learning rate 1e-05." in text
    assert ">learning rate</text>" not in text
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "2 settings at the default</summary>" in folded
    assert '<th scope="row">lr</th>' in folded
    assert '<th scope="row">batch_size</th>' not in folded


def evaluation(step: int, accuracy: float, margins: list[float], rows: Path) -> Evaluation:
    values = {"loss": 1.0 - accuracy, "pair_accuracy": accuracy}
    around = {"pair_accuracy": (accuracy - 0.1, accuracy + 0.1)}
    own = [
        {"source": f"{rows}:{n}", "metrics": {"loss": 1 - m, "mean_margin": m}}
        for n, m in enumerate(margins, 1)
    ]
    return Evaluation(step, len(margins), values, around, (), own)


def test_a_report_begins_with_the_result_and_shows_the_rows_that_changed(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    rows = tmp_path / "held_out.jsonl"
    rows.write_text("".join(f'{{"prompt": "Row {number}"}}\n' for number in range(1, 5)))
    path = make_run("one", eval_data=str(rows))
    folder = RunFolder(path)
    folder.append_evaluation(evaluation(0, 0.25, [0.0, 0.0, 0.0, 1.0], rows))
    folder.append_evaluation(evaluation(5, 0.5, [0.0, 2.0, 3.0, 0.5], rows))
    _, page = plot_runs([path], tmp_path / "report")
    text = page.read_text()
    assert (
        '<p class="result">On 4 held-out groups, pair accuracy rose from 0.25 [0.15, 0.35] to 0.5 [0.4, 0.6] '
        "and the loss fell from 0.75 to 0.5 in 5 steps.</p>"
    ) in text
    better = text[text.index("rows that got better") : text.index("rows that got worse")]
    assert re.findall(r"Row \d", better) == ["Row 3", "Row 2"]
    assert re.findall(r"Row \d", text[text.index("rows that got worse") :]) == ["Row 4"]
    assert "mean margin 1 → 0.5" in text


def test_what_may_be_chance_or_was_not_held_out_is_said(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = RunFolder(make_run("one", eval_data=None))
    (said,) = result_sentences(read_run(folder.path, "one"))
    assert said.startswith(
        "No rows were held out, so nothing is known of how it does on new rows; --eval-fraction"
    )
    folder.append_evaluation(evaluation(5, 0.5, [0.0], tmp_path))
    (said,) = result_sentences(read_run(folder.path, "one"))
    assert said == "On 1 held-out group, pair accuracy is 0.5 [0.4, 0.6] and the loss is 0.5 after step 5."
    folder.append_evaluation(evaluation(9, 0.55, [0.0], tmp_path))
    (said,) = result_sentences(read_run(folder.path, "one"))
    assert "to 0.55 [0.45, 0.65] (the intervals overlap: it may be chance) and the loss fell" in said


@pytest.mark.parametrize("output", ["lr-0.1", "lr-0.1.png", "lr-0.1.html"])
def test_a_dot_in_a_name_is_kept(
    run_cli: Callable[..., Any], make_run: Callable[..., Path], output: str
) -> None:
    make_run("first", steps=2)
    status, out, _ = run_cli("plot", "first", "--output", output)
    assert (status, out) == (0, "Wrote lr-0.1.png\nWrote lr-0.1.html\n")


def test_another_kind_of_file_is_refused(
    run_cli: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    make_run("first", steps=2)
    status, _, err = run_cli("plot", "first", "--output", "lr-0.1.PDF")
    assert (status, err) == (2, "mint-train: --output lr-0.1.PDF: plots are .png and .html; give lr-0.1\n")
    assert not list(tmp_path.glob("lr-0.1*"))


def test_a_run_named_twice_is_drawn_once(
    run_cli: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    make_run("first", steps=2)
    assert run_cli("plot", "first", str(tmp_path / "first"), "--output", "twice").status == 0
    assert "var(--run1)" not in Path("twice.html").read_text()


def test_several_runs_lie_over_one_another_and_their_differences_are_marked(
    run_cli: Callable[..., Any], make_run: Callable[..., Path]
) -> None:
    make_run("first", steps=100, beta=0.1)
    make_run("second", steps=80, beta=0.5)
    status, out, _ = run_cli("plot", "first", "second", "--output", "both.html")
    assert (status, out) == (0, "Wrote both.png\nWrote both.html\n")
    text = Path("both.html").read_text()
    page = Page(text)
    marked = [row for row in page.rows if row and row[0].endswith("≠")]
    assert marked == [["options.beta ≠", "0.1", "0.5"]]
    assert len(page.marked) == 1
    loss = text[text.index("<figure>") : text.index("</figure>")]
    assert loss.count("var(--run0)") == loss.count("var(--run1)") == 2, "a curve and its running mean each"
    assert "first from 0.7 to 0.007; second from 0.7 to 0.00875" in loss


def test_a_constant_metric_need_not_be_one_of_the_first_run(
    run_cli: Callable[..., Any], make_run: Callable[..., Path]
) -> None:
    make_run("first")
    lines = make_run("second") / "metrics.jsonl"
    lines.write_text(lines.read_text().replace('"loss":', '"kept": 0.5, "loss":'))
    assert run_cli("plot", "first", "second", "--output", "both.html").status == 0
    assert "Constant, and not drawn: kept 0.5" in Path("both.html").read_text()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda _: None, "nowhere holds no run"),
        (lambda path: path.mkdir(), "nowhere holds no run"),
        (lambda path: broken_run(path, "run.json", "{"), "run.json cannot be read"),
        (lambda path: broken_run(path, "metrics.jsonl", "no line\n"), "metrics.jsonl is broken"),
        (lambda path: broken_run(path, "metrics.jsonl", ""), "has no finished step to draw yet"),
        (lambda path: broken_run(path, "evaluations.jsonl", "[]\n"), "evaluations.jsonl is broken"),
    ],
)
def test_a_folder_that_cannot_be_drawn_is_one_line(
    run_cli: Callable[..., Any], make_run: Callable[..., Path], broken: Callable[..., Any], message: str
) -> None:
    make_run("whole").rename("source")
    broken(Path("nowhere"))
    status, out, err = run_cli("plot", "nowhere")
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def broken_run(path: Path, file: str, text: str) -> None:
    shutil.copytree("source", path)
    (path / file).write_text(text)


def test_without_matplotlib_it_says_what_to_install(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    for name in ("charts", "page"):
        monkeypatch.delitem(sys.modules, f"mint_train.report.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="plots need matplotlib: pip install jinja2 matplotlib"):
        plot_runs([make_run("one")], tmp_path / "report")


@pytest.fixture(scope="module")
def browser() -> str:
    """A browser that draws pages without a screen."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome is installed")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_looks_right_in_a_browser(
    browser: str, scheme: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    _, page = plot_runs([make_run("first", steps=100), make_run("second", steps=80)], tmp_path / "both")
    shot = tmp_path / "shot.png"
    subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1200",
            *(["--force-dark-mode"] if scheme == "dark" else []), f"--screenshot={shot}", page.as_uri(),
        ],
        capture_output=True, check=True, timeout=600,
    )  # fmt: skip
    with Image.open(io.BytesIO(shot.read_bytes())) as taken:
        picture = taken.convert("RGB")
    colours = {colour: count for count, colour in picture.getcolors(1 << 24) or []}
    background = (255, 255, 255) if scheme == "light" else (0x15, 0x18, 0x1C)
    assert colours.get(background, 0) > 0.3 * picture.width * picture.height
    curves = (
        [(0x00, 0x67, 0xA5), (0xC4, 0x46, 0x01)]
        if scheme == "light"
        else [(0x56, 0xB4, 0xE9), (0xFF, 0x9E, 0x64)]
    )
    for curve in curves:
        assert colours.get(curve, 0) > 100, f"no curve of colour {curve}"
    other = (0x15, 0x18, 0x1C) if scheme == "light" else (255, 255, 255)
    assert colours.get(other, 0) < 0.01 * picture.width * picture.height
