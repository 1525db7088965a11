"""What the attacks share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave fsync out: no attack here cuts the power, and on a busy disk each call takes a second."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
