"""The names of tests: the processes of one run must agree on them."""

from __future__ import annotations

import pytest

SHORT = 8
"""Bytes that may stand in a name by chance."""


def test_no_name_shows_bytes(request: pytest.FixtureRequest) -> None:
    """An archive in a name would hold the second in which each process made it."""
    for item in request.session.items:
        for value in getattr(getattr(item, "callspec", None), "params", {}).values():
            if isinstance(value, bytes) and len(value) > SHORT:
                assert repr(value)[2:-1] not in item.name
