"""Texts that `--help` and `losses` print about the installed losses, without importing torch."""

from __future__ import annotations

from mint_train.losses.loss_options import NoOptions, option_rows
from mint_train.plugins.discovery import load_chain, load_plugin, make_manager
from mint_train.plugins.listing import list_losses


def loss_option_rows(name: str) -> list[tuple[str, str]]:
    """Describe the options of one installed loss, a row each."""
    manager = make_manager(load_chain(load_plugin(name)))
    return option_rows(manager.hook.loss_options() or NoOptions)


def losses_table() -> str:
    """Lay out the installed losses as a plain table; a broken one shows its reason."""
    header = ("loss", "extends", "distribution", "description")
    rows = [
        (
            listing.name,
            listing.extends or "-",
            listing.origin,
            f"BROKEN: {listing.problem}" if listing.problem else listing.description,
        )
        for listing in list_losses()
    ]
    if not rows:
        return "No loss is installed. Install one, such as mint-train-dpo."
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in [header, *rows]
    )
