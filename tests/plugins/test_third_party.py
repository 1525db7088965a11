"""A stranger's plugin: scaffolded outside the repository, built as a wheel, installed, checked, trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from stranger import NAME, install_stranger, mint_train, run


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
def test_it_passes_the_check(installed: Path, tmp_path: Path) -> None:
    assert "All 18 checks passed." in mint_train(installed, tmp_path, "check", NAME)


@pytest.mark.slow
def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    tests = installed.parent / NAME / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    done = run(*command, folder=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout
    assert "19 passed" in done.stdout


@pytest.mark.slow
def test_it_trains_embedded(installed: Path, tmp_path: Path) -> None:
    out = mint_train(
        installed, tmp_path, "--loss", NAME, "--backend", "local", "--set", "margin=0.5",
        MINT_STRANGER_LOSS_STEPS="3",
    )  # fmt: skip
    assert "Step 3: loss=" in out
    assert (tmp_path / "runs").is_dir()


def test_new_refuses_what_is_there(run_cli: Any, tmp_path: Path) -> None:
    assert run_cli("new", "fresh-loss", "--folder", "here").status == 0
    assert (tmp_path / "here" / "src" / "fresh_loss" / "__init__.py").exists()
    ended = run_cli("new", "fresh-loss", "--folder", "here")
    assert ended.status == 2
    assert "here exists already" in ended.err


@pytest.mark.parametrize(
    "name", ["My-Loss", "my_loss", "1st", "-x", "a/b", "", "my--loss", "class", "json", "torch"]
)
def test_new_refuses_bad_names(name: str, run_cli: Any, tmp_path: Path) -> None:
    ended = run_cli("new", "--", name)
    assert ended.status == 2
    assert "mint-train:" in ended.err
    assert not any(tmp_path.iterdir())


def test_new_refuses_the_name_of_an_installed_loss(run_cli: Any) -> None:
    ended = run_cli("new", "dpo")
    assert ended.status == 2
    assert "installed already, by mint-train-dpo" in ended.err
