"""The server that the tests of this folder share, and their marks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import SkyrlServer, running_server

SKIP_VARIABLE = "MINT_TRAIN_SKIP_SKYRL"
FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and keep them in one process: a second server would cost minutes."""
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.skyrl)
            item.add_marker(pytest.mark.xdist_group("skyrl"))


@pytest.fixture(scope="session")
def skyrl_server(
    starter_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SkyrlServer]:
    """A running server that has the starter model; it is never skipped in CI."""
    if os.environ.get(SKIP_VARIABLE) == "1" and os.environ.get("CI") != "true":
        pytest.skip(f"{SKIP_VARIABLE}=1: no SkyRL server is installed and started")
    with running_server(starter_model_folder, tmp_path_factory.mktemp("skyrl")) as server:
        yield server
