"""Which adapters hold a slot on a SkyRL server."""

from __future__ import annotations

import sqlite3
import time

from server import SkyrlServer

from mint_train.backends.mint.client import MintTrainingClient

WAIT_SECONDS = 60.0


def loaded(server: SkyrlServer) -> set[str]:
    """Name the adapters that hold a slot."""
    with sqlite3.connect(server.log.with_name("tinker.db")) as database:
        return {
            name for (name,) in database.execute("SELECT model_id FROM models WHERE status != 'unloaded'")
        }


def is_unloaded(client: MintTrainingClient, server: SkyrlServer) -> bool:
    """Wait until the server has taken a slot back, which it does when it comes to it."""
    end = time.monotonic() + WAIT_SECONDS
    while (taken := str(client.client.model_id) in loaded(server)) and time.monotonic() < end:
        time.sleep(0.1)
    return not taken
