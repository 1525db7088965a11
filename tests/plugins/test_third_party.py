"""A stranger's plugin: scaffolded outside the repository, built as a wheel, installed, checked, trained."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from stranger import NAME, install, install_stranger, mint_train, run

PAGE = Path(__file__).parents[2] / "docs" / "write-a-loss.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a scaffolded plugin's wheel was installed into."""
    return install_stranger(tmp_path_factory.mktemp("stranger"))


def test_it_is_listed(installed: Path, tmp_path: Path) -> None:
    sections = mint_train(installed, tmp_path, "losses").split("\n\n")
    section = next(section for section in sections if section.startswith(f"{NAME} 0.1.0\n"))
    entry = " ".join(section.split("\n", 1)[1].split())
    assert entry.startswith(f"{NAME} Push the mean token logprob")
    assert entry.endswith("Extends dpo.")


@pytest.mark.slow
def test_it_passes_the_check(installed: Path, tmp_path: Path, warm_python: str) -> None:
    assert "All 20 checks passed." in mint_train(installed, tmp_path, "check", NAME, python=warm_python)


@pytest.mark.slow
def test_its_own_tests_pass(installed: Path, tmp_path: Path, warm_python: str) -> None:
    tests = installed.parent / NAME / "tests"
    command = [warm_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    done = run(*command, folder=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout
    assert "21 passed" in done.stdout


@pytest.mark.slow
def test_it_trains_embedded(installed: Path, tmp_path: Path, warm_python: str) -> None:
    out = mint_train(
        installed, tmp_path, "--loss", NAME, "--backend", "local", "--set", "margin=0.5",
        python=warm_python, MINT_STRANGER_LOSS_STEPS="3",
    )  # fmt: skip
    assert "Step 3: loss=" in out
    assert (tmp_path / "runs").is_dir()


@pytest.mark.slow
def test_the_package_of_the_page_is_installed_with_its_rows(tmp_path: Path) -> None:
    blocks = re.findall(r"^```\w+\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    of_file = {text.split()[1]: text for text in blocks if text.startswith("# ")}
    package = tmp_path / "my-losses" / "src" / "my_losses"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "graded.py").write_text(of_file["graded.py"])
    rows = next(text for text in blocks if text.startswith('{"prompt"') and '"grade"' in text)
    (package / "graded.jsonl").write_text(rows)
    (tmp_path / "my-losses" / "pyproject.toml").write_text(of_file["pyproject.toml"])
    site = install(tmp_path, "my-losses")
    out = mint_train(site, tmp_path, "--loss", "graded", "--dry-run", "--examples", "0")
    assert out.startswith("graded.jsonl (bundled): 3 rows: text prompts with graded answers.")


def test_a_new_plugin_can_be_installed_beside_this_version(run_cli: Any, tmp_path: Path) -> None:
    assert run_cli("new", "fresh-loss").status == 0
    project = tomllib.loads((tmp_path / "fresh-loss" / "pyproject.toml").read_text())["project"]
    needed = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    for name in ("mint-train", "mint-train-dpo"):
        assert version(name) in needed[name]


def test_a_distribution_may_be_named_as_those_of_this_project(run_cli: Any, tmp_path: Path) -> None:
    assert run_cli("new", "mint-train-drafts").out.endswith("then mint-train check drafts\n")
    project = tomllib.loads((tmp_path / "mint-train-drafts" / "pyproject.toml").read_text())["project"]
    assert project["name"] == "mint-train-drafts"
    assert project["entry-points"]["mint_train.losses"] == {"drafts": "mint_train_drafts:drafts"}
    source = (tmp_path / "mint-train-drafts" / "src" / "mint_train_drafts" / "__init__.py").read_text()
    assert "def drafts(" in source


def test_new_refuses_what_is_there(run_cli: Any, tmp_path: Path) -> None:
    assert run_cli("new", "fresh-loss", "--folder", "here").status == 0
    assert (tmp_path / "here" / "src" / "fresh_loss" / "__init__.py").exists()
    ended = run_cli("new", "fresh-loss", "--folder", "here")
    assert ended.status == 2
    assert "here exists already" in ended.err


@pytest.mark.parametrize(
    "name",
    ["My-Loss", "my_loss", "1st", "-x", "a/b", "", "my--loss", "class", "json", "torch", "mint-train-class"],
)
def test_new_refuses_bad_names(name: str, run_cli: Any, tmp_path: Path) -> None:
    ended = run_cli("new", "--", name)
    assert ended.status == 2
    assert "mint-train:" in ended.err
    assert not any(tmp_path.iterdir())


def test_new_refuses_the_name_of_an_installed_loss(run_cli: Any) -> None:
    assert run_cli("new", "mint-train-dpo").status == 2
    ended = run_cli("new", "dpo")
    assert ended.status == 2
    assert "installed already, by mint-train-dpo" in ended.err
