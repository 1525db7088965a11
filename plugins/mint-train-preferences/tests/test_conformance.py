"""Every loss of the family keeps the plugin contract."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from mint_train.testing import check_loss

FAMILY = sorted(
    entry.name
    for entry in entry_points(group="mint_train.losses")
    if entry.dist is not None and entry.dist.name in ("mint-train-dpo", "mint-train-preferences")
)


@pytest.mark.parametrize("name", FAMILY)
def test_it_conforms(name: str) -> None:
    failed = [f"{result.name}: {result.detail}" for result in check_loss(name) if not result.passed]
    assert not failed
