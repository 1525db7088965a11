"""The docs are run: each Python block and each `mint-train` command; generated pages are up to date."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mint_train.plugins.discovery import hook_arguments

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_OURS = ("source ", "cp ", "export ", "make ", "pip ", "$ ")
BUNDLED = ROOT / "plugins" / "mint-train-dpo" / "src" / "mint_train_dpo" / "pairs.jsonl"
PAIRS = "".join(BUNDLED.read_text(encoding="utf-8").splitlines(keepends=True)[:20])
DEMONSTRATIONS = PAIRS.replace('"chosen"', '"completion"').replace('"rejected"', '"other"')

RunCli = Callable[..., tuple[int, str, str]]


def script_of_the_docs(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make_pages() -> ModuleType:
    return script_of_the_docs("make_pages")


def test_the_bundled_rows_are_what_the_starter_model_has_learned() -> None:
    make_bundled_rows = script_of_the_docs("make_bundled_rows")
    for name, made in make_bundled_rows.BY_RULES.items():
        written = (ROOT / "plugins" / name).read_text(encoding="utf-8")
        assert make_bundled_rows.as_lines(made()) == written, "run `python docs/make_bundled_rows.py`"


@pytest.mark.parametrize("name", ["hooks.md", "command-line.md", "settings.md"])
def test_a_generated_page_is_up_to_date(make_pages: ModuleType, name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert make_pages.PAGES[name]() == written, "run `python docs/make_pages.py`"


def test_every_hook_has_its_section_with_its_own_arguments() -> None:
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### `(\w+)`\n\n```text\n(.*?)\n```", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(hook_arguments())
    for hook, arguments in hook_arguments().items():
        assert re.findall(r"(\w+):", sections[hook].split(" -> ")[0]) == list(arguments)


def test_the_map_has_a_line_for_each_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page.partition("src/mint_train/\n")[2].partition("\nplugins/")[0]
    named = [line.split()[0].rstrip("/") for line in drawn.splitlines()]
    core = ROOT / "src" / "mint_train"
    packages = {path.parent.name for path in core.glob("*/__init__.py")}
    assert packages <= set(named)
    assert all((core / name).exists() for name in named)
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0][
        "layers"
    ]
    assert [name.removesuffix(".py") for name in named] == layers, "the map shows the order of the imports"


def test_every_module_that_a_page_names_exists() -> None:
    for page in (ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"):
        for name in re.findall(r"`(\w+/\w+\.py)`", page.read_text(encoding="utf-8")):
            assert (ROOT / "src" / "mint_train" / name).exists() or (ROOT / name).exists(), (
                f"{page.name}: {name}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_runs(
    page: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_python: str
) -> None:
    monkeypatch.setattr(sys, "executable", warm_python)  # of the processes that `compare` starts
    monkeypatch.chdir(tmp_path)
    for name in ("pairs.jsonl", "held-out.jsonl", "other.jsonl"):
        (tmp_path / name).write_text(PAIRS)
    (tmp_path / "demonstrations.jsonl").write_text(DEMONSTRATIONS)
    monkeypatch.syspath_prepend(tmp_path)
    made = "graded.py"
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            made = run_python(text)
        elif language == "toml":
            Path(text.split()[1]).write_text(text)
        elif language == "json":
            (tmp_path / "rows.jsonl").write_text(text)
            status, _, err = run_cli("--loss", "dpo", "--data", "rows.jsonl", "--steps", "1")
            assert status == 0, err
        elif language == "text" and text.startswith("{"):  # the rows of the module before them
            (tmp_path / made).with_suffix(".jsonl").write_text(text)
        elif language == "bash":
            run_commands(text, run_cli)


def run_python(text: str) -> str:
    """Write a block to its file, run it and the tests in it, and return the file's name."""
    name = re.match(r"# (\w+\.py)\n", text)
    assert name, "a Python block begins with its file's name, so that later commands can use it"
    Path(name[1]).write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads an attribute that transformers renamed
        defined = {"__name__": "__main__"}
        exec(compile(text, name[1], "exec"), defined)
    for test in (value for key, value in defined.items() if key.startswith("test_")):
        for arguments in cases_of(test):
            test(*arguments)
    return name[1]


def cases_of(test: Any) -> list[tuple[Any, ...]]:
    """Return the arguments of each case of a test that is parametrised by one name at most."""
    marks = getattr(test, "pytestmark", [])
    return [(value,) for mark in marks for value in mark.args[1]] or [()]


def run_commands(text: str, run_cli: RunCli) -> None:
    for line in text.splitlines():
        command = shlex.split(line, comments=True)
        if not command or line.startswith(NOT_OURS):
            continue
        assert command[0] == "mint-train", f"not run by any test: {line}"
        if "--model" in command:  # a model of the user's own: the tests have one
            from mint_train.backends.local.starter_model import save_starter_model

            save_starter_model(Path(command[command.index("--model") + 1]))
        training = "--loss" in command and "--help" not in command
        extra = ["--steps", "1"] if training and "--steps" not in command else []
        if "--epochs" in command:
            extra = []
        status, _, err = run_cli(*command[1:], *extra)
        assert status == 0, f"{line}\n{err}"


@pytest.mark.slow
def test_the_commands_for_several_gpus_run(tmp_path: Path, warm_python: str) -> None:
    page = (ROOT / "docs" / "local-training.md").read_text(encoding="utf-8")
    commands = re.findall(r"^torchrun (.*)$", page, re.MULTILINE)
    for command in commands:
        started = [warm_python, "-m", "torch.distributed.run", *shlex.split(command)]
        ended = subprocess.run(
            started, cwd=tmp_path, env=os.environ | {"PYTHON_EXEC": warm_python}, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("Run folder: runs/two") == 1, "only one process prints"
    assert len(commands) == 2


def test_the_readme_shows_what_make_run_prints(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = next(
        text for language, text in BLOCK.findall(PAGES[0].read_text("utf-8")) if language == "console"
    ).splitlines()
    printed = ["$ make run"]
    for command in made_by("run"):
        printed += command.splitlines()
        status, out, err = run_cli(*shlex.split(command.replace("\\\n", ""))[1:])
        assert status == 0, err
        printed += out.splitlines()
    # a terminal shows four digits of a number, and wraps
    expected, real = (" ".join(" ".join(lines).split()) for lines in (shown, printed))
    assert without_numbers(real) == without_numbers(expected)
    assert numbers(real) == pytest.approx(numbers(expected), rel=1e-2, abs=1e-2)
    assert max(map(len, shown)) <= 80


def test_the_site_begins_with_what_make_run_prints() -> None:
    readme, index = (
        next(text for kind, text in BLOCK.findall(path.read_text("utf-8")) if kind == language).splitlines()
        for path, language in ((PAGES[0], "console"), (ROOT / "docs" / "index.md", "text"))
    )
    assert [line for line in readme if not line.startswith(("$", ".venv", "  --"))] == index


def made_by(target: str) -> list[str]:
    """Return the commands of a target of the Makefile, as make prints them."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert recipe
    return re.split(r"(?<!\\)\n", recipe[1].replace("\t", "").rstrip())


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def without_numbers(line: str) -> str:
    return NUMBER.sub("N", line)


def numbers(line: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(line)]
