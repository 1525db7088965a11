"""The log-ratios of a policy that was trained on a service, and the two slots that they take there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from server import SkyrlServer
from slots import is_unloaded

import mint_train
from mint_train.backends.mint.client import MintTrainingClient
from mint_train.rows.conversations import Prompt
from mint_train.sampling.log_ratio import LogRatio

ASKED: list[tuple[Prompt, str]] = [("Say one.", "one it is"), ("Say two.", "two")]


@pytest.fixture
def run(skyrl_server: SkyrlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINT_API_KEY", "tml-x")
    monkeypatch.setenv("MINT_BASE_URL", skyrl_server.base_url)
    given: dict[str, Any] = {
        "base_url": skyrl_server.base_url, "model": skyrl_server.model, "backend": "mint", "lr": 3e-3,
    }  # fmt: skip
    mint_train.train("dpo", output=tmp_path / "run", steps=2, batch_size=2, progress="quiet", **given)
    return tmp_path / "run"


def test_both_slots_are_free_once_it_is_not_needed(run: Path, skyrl_server: SkyrlServer) -> None:
    log_ratio = LogRatio(str(run))
    assert all(abs(one) > 1e-3 for one in log_ratio.of(ASKED)), "the policy has moved"
    clients = [cast(MintTrainingClient, client) for client in (log_ratio.before, log_ratio.after)]
    del log_ratio
    assert [is_unloaded(client, skyrl_server) for client in clients] == [True, True]
