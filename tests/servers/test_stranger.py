"""A stranger's plugin, installed from its wheel, and one loss of each contract train on a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from server import SkyrlServer
from stranger import NAME, install_stranger, mint_train


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a scaffolded plugin's wheel was installed into."""
    return install_stranger(tmp_path_factory.mktemp("stranger"))


@pytest.mark.parametrize("loss", [NAME, "kto", "plackett-luce", "policy-gradient"])
def test_it_trains_on_the_server(
    loss: str, installed: Path, tmp_path: Path, skyrl_server: SkyrlServer
) -> None:
    out = mint_train(
        installed, tmp_path, "--loss", loss, "--backend", "mint", "--model", skyrl_server.model, "--steps", 1,
        MINT_API_KEY="tml-x", MINT_BASE_URL=skyrl_server.base_url,
    )  # fmt: skip
    assert "Step 1: loss=" in out
