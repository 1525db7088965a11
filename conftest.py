"""What all tests share: a clean environment, a small model, and the command line called in this process."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from warm_python import started

if "PYTEST_XDIST_WORKER" in os.environ:
    # several processes whose threads wait for one another take many times as long
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# huggingface_hub reads it when it is imported: no test may wait for a hub
os.environ["HF_HUB_OFFLINE"] = "1"

SKIPS_FAIL = bool(os.environ.get("MINT_TRAIN_SKIPS_FAIL"))
"""Whether a skipped test is an error: where everything that tests look for is installed."""
KEPT_VARIABLES = ("MINT_TRAIN_SKIP_SERVERS",)
DIALOGUES = 60
MANY_TESTS = 100
"""Of one file; no server has as many."""

WORDS = "the a river city Danube why because größer naïve 日本 🙂 1,450 `code` answer question good"
SHORT_PAIRS = [
    {"prompt": "Say one.", "chosen": "one", "rejected": "no"},
    {"prompt": "Say two.", "chosen": "two", "rejected": "never"},
    {"prompt": "Say three.", "chosen": "three it is", "rejected": "ask him"},
    {"prompt": "Say four.", "chosen": "four", "rejected": "why not five"},
    {"prompt": "Say five.", "chosen": "five", "rejected": "six"},
]


class Ended(NamedTuple):
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: some hold the second in which each process made them."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group files of many tests, and refuse a test named by an address: two processes collect it differently.

    Larger groups run first. None of these needs a server, so they run while the servers are installed.
    """
    tests = Counter(item.path for item in items)
    for item in items:
        if " at 0x" in item.name:
            raise pytest.UsageError(f"{item.nodeid}: name the parameter without its address, with ids=")
        if tests[item.path] >= MANY_TESTS:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[pytest.TestReport]:
    """Turn a skip into a failure where asked."""
    report = yield
    if SKIPS_FAIL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[pytest.CollectReport]:
    """Turn the skip of a whole module into a failure where asked."""
    report = yield
    if SKIPS_FAIL and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped: {report.longrepr}"
    return report


@cache
def installed_on(path: tuple[str, ...], group: str) -> EntryPoints:
    """The entry points of what is installed on a path of imports."""
    return entry_points(group=group)


@pytest.fixture(scope="session", autouse=True)
def remembered_entry_points() -> Iterator[None]:
    """Look once for what is installed: reading the metadata of each package takes longer than most tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            "mint_train.plugins.installed.entry_points",
            lambda group: installed_on(tuple(sys.path), group),
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Take the user's own settings and cache away, from fixtures of a whole module too; return another."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in list(os.environ):
            if name.startswith("MINT_") and name not in KEPT_VARIABLES:
                monkeypatch.delenv(name)
        cache = tmp_path_factory.mktemp("tokenised") / "for-modules"
        cache.mkdir()
        monkeypatch.setenv("MINT_TRAIN_CACHE", str(cache))
        yield cache


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, clean_environment: Path) -> Path:
    """Give each test a cache of its own, so that none finds what another has tokenised."""
    # pytest's numbered folders would be counted again for each of thousands of tests
    cache = Path(tempfile.mkdtemp(dir=clean_environment.parent))
    monkeypatch.setenv("MINT_TRAIN_CACHE", str(cache))
    return cache


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave fsync out: no test cuts the power, and on a busy disk each call takes a second."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def warm_python(clean_environment: Path) -> Iterator[str]:
    """A program to run in place of `sys.executable`, where a test needs a process but not how it starts."""
    with tempfile.TemporaryDirectory(prefix="mt") as folder, started(Path(folder)) as program:
        yield program


@pytest.fixture(scope="session")
def starter_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter model, saved once."""
    from mint_train.backends.local.starter_model import save_starter_model

    folder = tmp_path_factory.mktemp("starter")
    save_starter_model(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(starter_model_folder: Path) -> Any:
    """The starter model's tokenizer, which has a chat template; a test that changes it takes a copy."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(starter_model_folder)


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    """A file of pairs in ShareGPT form, of 1 to 13 turns and of many lengths, as people's chats are."""
    dice = random.Random(0)

    def turn(speaker: str) -> dict[str, str]:
        sentences = [
            " ".join(dice.choices(WORDS.split(), k=dice.randint(3, 14))) for _ in range(dice.randint(1, 12))
        ]
        return {"from": speaker, "value": dice.choice([". ", ".\n\n", "\n- "]).join(sentences)}

    rows = []
    for number in range(DIALOGUES):
        speakers = [("human", "gpt")[index % 2] for index in range(1 + 2 * (number % 7))]
        turns = [turn(speaker) for speaker in (["system"] if number % 5 == 0 else []) + speakers]
        rows.append({"conversations": turns, "chosen": turn("gpt"), "rejected": turn("gpt")})
    path = tmp_path / "dialogues.json"
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as a JSON Lines file: `write_rows(rows, name="rows.jsonl")`."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def short_pairs(write_rows: Callable[..., Path]) -> Path:
    """A file of five short pairs, quick to train on."""
    return write_rows(SHORT_PAIRS, "pairs.jsonl")


@pytest.fixture
def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ended]:
    """Call `mint-train` in this process and in an empty folder: `run_cli(*args) -> (status, out, err)`."""
    from mint_train.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["mint-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def install_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    """Make a plugin object look like an installed distribution's: `install_loss(name, plugin)`."""
    added: list[EntryPoint] = []

    def found(group: str) -> Iterator[EntryPoint]:
        yield from installed_on(tuple(sys.path), group)
        yield from (entry for entry in added if entry.group == group)

    def install(name: str, plugin: object) -> None:
        module = ModuleType(f"installed_{len(added)}_for_a_test")
        module.plugin = plugin  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        added.append(EntryPoint(name, f"{module.__name__}:plugin", "mint_train.losses"))

    monkeypatch.setattr("mint_train.plugins.installed.entry_points", found)
    return install


@pytest.fixture
def train(
    starter_model_folder: Path, short_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Train on the short pairs, two a step: `train(loss="dpo", output="run", **settings) -> RunResult`."""
    import mint_train

    monkeypatch.chdir(tmp_path)

    def run(loss: Any = "dpo", **settings: Any) -> Any:
        given = {
            "data": short_pairs,
            "model": str(starter_model_folder),
            "batch_size": 2,
            "lr": 1e-3,
            "steps": 4,
            "output": Path("run"),
        }
        return mint_train.train(loss, **given | settings)

    return run
