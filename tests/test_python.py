"""What a Python program finds in `mint_train`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run_files import run_description

import mint_train
from mint_train.errors import OptionError, UserError
from mint_train.run_folder.folder import METRICS_FILE
from mint_train.run_folder.replacing import RUN_FILE


def test_the_module_lists_what_it_has_and_imports_it_late() -> None:
    code = (
        "import sys, mint_train; "
        "print(set(mint_train.__all__) <= set(dir(mint_train)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
    with pytest.raises(AttributeError, match="no attribute 'trian'; did you mean 'train'"):
        mint_train.trian  # noqa: B018


def test_another_tool_s_name_of_a_setting_is_answered_with_ours() -> None:
    with pytest.raises(OptionError, match='no setting is called "learning_rate"; here it is --lr'):
        mint_train.train("dpo", learning_rate=1)


def test_a_run_is_read_back_with_its_metrics_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json"):
        mint_train.load_run(tmp_path)
    (tmp_path / RUN_FILE).write_text(run_description().to_json())
    step = '{"step": 1, "metrics": {"loss": 0.5}, "learning_rate": 0.1, "tokens": 3, "seconds": 1.0}'
    (tmp_path / METRICS_FILE).write_text(f"{step}\n")
    run = mint_train.load_run(tmp_path)
    assert run.metrics == [{"step": 1, "loss": 0.5, "learning_rate": 0.1, "tokens": 3, "seconds": 1.0}]
    assert (run.description.loss, run.evaluations) == (run_description().loss, [])
