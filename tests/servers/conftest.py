"""The servers that the tests of this folder share, and their marks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from environments import SKIP_VARIABLE, servers_are_skipped
from server import SkyrlServer, running_server

from mint_train.backends.mint.client import MintTrainingClient

FOLDER = Path(__file__).parent
GROUPS = {"test_sent_gradients": "gradients", "test_machines": "gradients"}
"""The modules that run beside the others, in a process with a server of its own."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and keep those of a server in one process; large groups run first."""
    skipped = servers_are_skipped()
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.server)
            if skipped:
                item.add_marker(pytest.mark.skip(f"{SKIP_VARIABLE}=1: no server is installed and started"))
            item.add_marker(pytest.mark.xdist_group(group_of(item)))


def group_of(item: pytest.Item) -> str:
    """Return the name of the tests that share a process with this one."""
    if item.path.stem == "test_other_servers":
        return str(item.callspec.params["server"])  # type: ignore[attr-defined]
    return GROUPS.get(item.path.stem, "skyrl")


class OneServer:
    """The server that runs, if any: started when a module needs one, and ended when the next test needs none.

    One that waits for requests takes a tenth of a core.
    """

    def __init__(self) -> None:
        self.running = ExitStack()
        self.server: SkyrlServer | None = None

    def started(self, model_folder: Path, work_folder: Path) -> SkyrlServer:
        """Return the server that runs, or start one."""
        if self.server is None:
            # one at once, of which there is one shape to compile; the other servers pad two to one length
            running = running_server(model_folder, work_folder, sequences=1)
            self.server = self.running.enter_context(running)
        return self.server

    def end(self) -> None:
        """End the server."""
        self.running.close()
        self.server = None


ONE_SERVER = OneServer()


@pytest.fixture(scope="module")
def skyrl_server(starter_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SkyrlServer:
    """A running server that has the starter model; it is never skipped in CI."""
    return ONE_SERVER.started(starter_model_folder, tmp_path_factory.mktemp("skyrl"))


@pytest.hookimpl(trylast=True)  # clients are closed before
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """End the server if the next test does not need it."""
    within = nextitem is not None and nextitem.path.is_relative_to(FOLDER)
    if not within or group_of(nextitem) not in ("skyrl", "gradients"):
        ONE_SERVER.end()


@pytest.fixture(autouse=True)
def kept_proofs(clean_environment: Path, own_cache: Path) -> None:
    """Let the tests share what was proved about a server, which takes longer than most of them."""
    proofs = clean_environment / "services"
    proofs.mkdir(exist_ok=True)
    (own_cache / "services").symlink_to(proofs)


@pytest.fixture(scope="module", autouse=True)
def clients() -> Iterator[list[MintTrainingClient]]:
    """Keep a list of the clients that a module opens."""
    opened = list[MintTrainingClient]()
    create = MintTrainingClient.__init__

    def created(client: MintTrainingClient, *arguments: Any, **options: Any) -> None:
        create(client, *arguments, **options)
        opened.append(client)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(MintTrainingClient, "__init__", created)
        yield opened


@pytest.fixture(autouse=True)
def closed_clients(clients: list[MintTrainingClient]) -> Iterator[None]:
    """Close each client after its test: its session would be kept alive, and its adapter with it."""
    yield
    while clients:
        clients.pop().close()
