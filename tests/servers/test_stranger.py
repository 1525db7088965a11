"""A stranger's plugin, installed from its wheel, trains on a real server."""

from __future__ import annotations

from pathlib import Path

from server import SkyrlServer
from stranger import NAME, install_stranger, mint_train


def test_it_trains_on_the_server(tmp_path: Path, skyrl_server: SkyrlServer) -> None:
    installed = install_stranger(tmp_path)
    out = mint_train(
        installed, tmp_path, "--loss", NAME, "--backend", "mint", "--model", skyrl_server.model, "--steps", 1,
        MINT_API_KEY="tml-x", MINT_BASE_URL=skyrl_server.base_url,
    )  # fmt: skip
    assert "Step 1: loss=" in out
