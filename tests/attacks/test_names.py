"""Names, files and disks that cannot be: one line each, with the right exit status, and nothing changed."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from run_files import run_description
from trees import tree

from mint_train.backends.local.adapter import LoraShape
from mint_train.backends.local.load import open_local_client
from mint_train.backends.local.merging import merge_adapter
from mint_train.backends.local.states import load_state, save_state
from mint_train.errors import BackendError, DataError, MintTrainError, UserError, unusable_text
from mint_train.rendering import refusals
from mint_train.rows.readers import open_data
from mint_train.run_folder.description import parse_description
from mint_train.run_folder.folder import RunFolder
from mint_train.settings.cache import cache_folder
from mint_train.settings.merge import load_settings
from mint_train.training.runner import Runner

pytestmark = pytest.mark.attacks

LONG = "x" * 5000
NOT_UTF8 = "bad\udcff"
ROWS = "".join(json.dumps({"prompt": str(n), "chosen": "a", "rejected": "b"}) + "\n" for n in range(4))
LOCAL = ("--loss", "dpo", "--backend", "local")


def one_line(ended: Any, status: int = 2) -> str:
    assert ended.status == status, ended.err
    assert ended.err.count("\n") == 1
    return str(ended.err)


# names


@pytest.mark.parametrize(
    "arguments",
    [(*LOCAL, "--data", "NAME"), (*LOCAL, "--output", "NAME"), (*LOCAL, "--model", "NAME"), ("NAME",),
     (*LOCAL, "--config", "NAME"), ("resume", "NAME"), ("sample", "NAME"), ("plot", "NAME"), ("new", "NAME"),
     ("check", "NAME"), ("export", "NAME"), ("eval", "NAME"), (*LOCAL, "--chat-template", "NAME")],
)  # fmt: skip
@pytest.mark.parametrize("name", [LONG, NOT_UTF8, "a[/red]b", "[bold]x[/bold]", "$x_1$^"])
def test_a_name_that_cannot_be_is_one_line(
    run_cli: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], name: str
) -> None:
    if name not in (LONG, NOT_UTF8) and ("--output" in arguments or "new" in arguments):
        return  # a name as good as any other
    (tmp_path / "runs").mkdir()
    before = tree(tmp_path)
    line = one_line(run_cli(*(name if word == "NAME" else word for word in arguments)))
    if name not in (LONG, NOT_UTF8):
        assert name in line
    assert tree(tmp_path) == before


def test_a_name_with_markup_is_shown_as_it_is(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    name = "a[bold]b[red].jsonl"
    (tmp_path / name).write_text(ROWS)
    ended = run_cli(*LOCAL, "--data", name, "--dry-run")
    assert ended.status == 0
    assert name in ended.out


@pytest.mark.parametrize("setting", ["data", "output", "model", "chat_template", "eval_data"])
def test_a_null_character_in_a_config_file_is_one_line(
    run_cli: Callable[..., Any], tmp_path: Path, setting: str
) -> None:
    (tmp_path / "run.toml").write_text(f'{setting} = "a\\u0000b"\n')
    assert "a\\u0000b" in one_line(
        run_cli(*LOCAL, "--dry-run" if setting != "output" else "--quiet", "--config", "run.toml")
    )


def test_a_pattern_that_finds_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    Path(path).write_text(ROWS)
    with pytest.raises(DataError, match="not UTF-8"):
        open_data(f"{tmp_path}/*.jsonl")
    assert unusable_text("größer 日本") == ""


def test_a_name_with_dollars_is_drawn(tmp_path: Path) -> None:
    from mint_train.report.plots import plot_runs

    run = tmp_path / "a$x_1$^{[bold]"
    run.mkdir()
    (run / "run.json").write_text(run_description().to_json())
    line = {"metrics": {"loss": 1.0, "a$b_{": 2.0}, "learning_rate": 0.1, "tokens": 1, "seconds": 1.0}
    lines = [{"step": 1, **line}, {"step": 2, **line}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture, page = plot_runs([run], tmp_path / "report")
    assert picture.stat().st_size > 1000
    assert "a$x_1$^{[bold]" in page.read_text()


# deep and broken files


@pytest.mark.parametrize("depth", [100, 300, 900, 5_000, 100_000])
def test_a_deeply_nested_run_json_is_refused_or_read(tmp_path: Path, depth: int) -> None:
    text = run_description(settings={"options": {"a": "HERE"}}).to_json()
    deep = text.replace('"HERE"', "[" * depth + "]" * depth)
    with pytest.raises(UserError) as refused:
        parse_description(deep, tmp_path / "run.json")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '"x"', "\udcff"])
def test_a_broken_adapter_config_is_one_line(
    tmp_path: Path, content: str, run_cli: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / "adapter_config.json").write_text(content, errors="surrogateescape")
    settings = load_settings({"loss": "dpo", "backend": "local"}).public()
    (run / "run.json").write_text(run_description(settings=settings).to_json())
    (run / "checkpoints.jsonl").write_text(
        '{"step": 1, "state": "x", "sampler": "adapter", "loss_state": {}}\n'
    )
    before = tree(tmp_path)
    line = one_line(run_cli("export", "run"))
    assert "adapter_config.json is broken" in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize("content", ["{", "[]", '{"peft_type": "LORA", "r": "x"}', '{"peft_type": "NONE"}'])
def test_an_adapter_that_peft_cannot_read_is_not_merged(
    starter_model_folder: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(BackendError, match="cannot be merged") as refused:
        merge_adapter(str(starter_model_folder), tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", [(3, 4), (12,), (4, 3, 1), (), (0,)])
@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq", "step"])
def test_moments_of_the_wrong_shape_are_refused(tmp_path: Path, moment: str, shape: tuple[int, ...]) -> None:
    parameters = {"a": torch.nn.Parameter(torch.randn(4, 3))}
    optimizer = torch.optim.AdamW(parameters.values())
    parameters["a"].sum().backward()
    optimizer.step()
    if moment == "step" and shape == ():
        return
    optimizer.state[parameters["a"]][moment] = torch.zeros(shape)
    save_state(tmp_path / "state", parameters, optimizer)
    before = parameters["a"].detach().clone()
    with pytest.raises(BackendError, match=f"{moment} of a has another shape"):
        load_state(tmp_path / "state", parameters, optimizer)
    assert torch.equal(parameters["a"], before)


@pytest.mark.parametrize(
    ("template", "says"),
    [("{% for x in ().__class__.__base__.__subclasses__() %}{{x}}{% endfor %}", "sandbox"),
     ("{{ messages[0].content.__init__.__globals__ }}", "sandbox"),
     ("{% for i in range(10**9) %}x{% endfor %}", "refuses"),
     ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "refuses"),
     ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply")],
)  # fmt: skip
def test_a_template_that_must_not_run_is_one_line(
    run_cli: Callable[..., Any], tmp_path: Path, template: str, says: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "chat.jinja").write_text(template)
    ended = run_cli(
        *LOCAL, "--data", "rows.jsonl", "--dry-run", "--render", "template", "--chat-template", "chat.jinja"
    )
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert says in ended.out + ended.err


@pytest.mark.parametrize("form", ["recipe", "template"])
def test_a_template_that_never_ends_is_stopped(
    run_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(refusals, "LOOK_SECONDS", 0.02)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    loop = "{% for i in range(99999) %}"
    # only a row that says "2" goes round for ever: what the program renders of its own does not show it
    endless = f"{loop}{loop}{'{% endfor %}' * 2}"
    (tmp_path / "chat.jinja").write_text(f"{{% if messages[0].content == '2' %}}{endless}{{% endif %}}<eos>")
    given = (*LOCAL, "--data", "rows.jsonl", "--render", form, "--chat-template", "chat.jinja")
    line = one_line(run_cli(*given, "--dry-run"))
    assert "the chat template has not ended after" in line


def test_renderings_that_end_are_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(refusals, "WATCH", refusals.Watch())
    for _ in range(60):
        with refusals.template_refusals(), refusals.template_refusals():
            time.sleep(0.005)


# the machine


def test_a_rank_that_no_memory_holds_is_refused_at_once(starter_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--rank 1000000000: the adapter and its optimiser need .* GB, and"):
        open_local_client(str(starter_model_folder), LoraShape(1_000_000_000), 0, tmp_path)


HOMELESS = """
import os, pwd, sys
def unknown(*_): raise KeyError("uid not found")
pwd.getpwuid = pwd.getpwnam = unknown
os.getuid = os.geteuid = lambda: 54321
from mint_train.cli.main import main
sys.exit(main())
"""


def test_a_user_that_no_file_knows_trains(tmp_path: Path) -> None:
    given = (*LOCAL, "--steps", "1", "--json", "--output", "run")
    ended = subprocess.run(
        [sys.executable, "-c", HOMELESS, *given], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "MINT_TRAIN_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "run" / "adapter").is_dir()


def test_a_user_without_a_home_folder_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINT_TRAIN_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without an entry in passwd
    with pytest.raises(UserError, match=r"has no home folder .* MINT_TRAIN_CACHE"):
        cache_folder()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts no file systems")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_is_one_line(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_disk / "filler").write_bytes(bytes(900_000))
    with pytest.raises(BackendError, match=r"the base model cannot be written to .*: .*space") as refused:
        open_local_client(None, LoraShape(8), 0, small_disk)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    stream = small_disk.parent / "rows.jsonl"
    stream.write_bytes(ROWS.encode() * 20_000)
    with stream.open("rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file, isatty=lambda: False))
        with pytest.raises(MintTrainError, match=r"standard input cannot be copied to .*: No space left"):
            open_data("-")
    assert [path.name for path in small_disk.iterdir() if path.is_file()] == ["filler"]


# tables


@pytest.mark.parametrize(
    ("value", "named"),
    [(decimal.Decimal("1.5"), "a decimal"), (datetime.date(2020, 1, 1), "a date"), (b"abc", "bytes"),
     (datetime.datetime(2020, 1, 1), "a time"), (datetime.timedelta(1), "a duration"), (1.5, "a number")],
)  # fmt: skip
def test_what_a_table_holds_is_named_as_what_it_is(
    run_cli: Callable[..., Any], tmp_path: Path, value: Any, named: str
) -> None:
    pq.write_table(
        pa.table({"prompt": ["p"], "chosen": [value], "rejected": ["b"]}), tmp_path / "rows.parquet"
    )
    assert f"not {named}" in one_line(run_cli(*LOCAL, "--data", "rows.parquet"))


# whatever is raised


@pytest.mark.parametrize(
    "raised", [RuntimeError("odd"), OSError(5, "Input/output error"), KeyboardInterrupt()]
)
def test_a_run_that_ends_by_what_nobody_foresaw_says_so(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    record = Runner.record

    def failing(self: Runner, submitted: Any) -> None:
        record(self, submitted)
        if self.finished == 2:
            raise raised

    monkeypatch.setattr(Runner, "record", failing)
    with pytest.raises(type(raised)):
        train(save_every=1)
    description = RunFolder(Path("run")).read_description()
    assert description.status == ("interrupted" if isinstance(raised, KeyboardInterrupt) else "failed")
    assert description.finished_steps == 2
    assert type(raised).__name__ in str(description.problem)


def test_what_the_system_refuses_is_one_line(
    run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> str:
        raise OSError(5, "Input/output error", "/a/file")

    monkeypatch.setattr("mint_train.cli.listing.losses_text", lambda: refused(0))
    assert one_line(run_cli("losses"), 1) == "mint-train: /a/file: Input/output error\n"
