"""The servers that the tests of this folder share, and their marks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import SkyrlServer, running_server

SKIP_VARIABLE = "MINT_TRAIN_SKIP_SERVERS"
FOLDER = Path(__file__).parent
OTHERS = "test_other_servers"
"""The tests of the servers but the first: they run in a process of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and keep those of a server in one process, so that it starts once."""
    skipped = os.environ.get(SKIP_VARIABLE) == "1" and os.environ.get("CI") != "true"
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.server)
            if skipped:
                item.add_marker(pytest.mark.skip(f"{SKIP_VARIABLE}=1: no server is installed and started"))
            item.add_marker(pytest.mark.xdist_group("other-servers" if OTHERS in item.path.name else "skyrl"))


@pytest.fixture(scope="session")
def skyrl_server(
    starter_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SkyrlServer]:
    """A running server that has the starter model; it is never skipped in CI."""
    with running_server(starter_model_folder, tmp_path_factory.mktemp("skyrl")) as server:
        yield server
