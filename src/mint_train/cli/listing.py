"""Texts that `--help` and `losses` print about the installed losses, without importing torch."""

from __future__ import annotations

from itertools import groupby

from mint_train.observers.terminal import column_count, wrapped
from mint_train.plugins.listing import LossListing, list_losses


def loss_option_rows(name: str) -> list[tuple[str, str]]:
    """Describe the options of one installed loss, a row each."""
    from mint_train.losses.loss_options import NoOptions, option_rows
    from mint_train.plugins.discovery import load_chain, load_plugin, make_manager

    manager = make_manager(load_chain(load_plugin(name)))
    return option_rows(manager.hook.loss_options() or NoOptions)


def losses_text() -> str:
    """Return the installed losses under their distributions, wrapped to the terminal's width."""
    listings = sorted(list_losses(), key=lambda listing: (listing.origin, listing.name))
    if not listings:
        return "No loss is installed. In this project's repository: pip install -e plugins/mint-train-dpo"
    column = max(len(listing.name) for listing in listings) + 4
    sections = [
        "\n".join([origin, *(entry(listing, column) for listing in group)])
        for origin, group in groupby(listings, key=lambda listing: listing.origin)
    ]
    return "\n\n".join(sections)


def entry(listing: LossListing, column: int) -> str:
    """Return a loss's name with its description beside it, or why it is broken."""
    text = f"BROKEN: {listing.problem}" if listing.problem else listing.description
    if listing.extends:
        text += f" Extends {listing.extends}."
    return wrapped(f"  {listing.name}".ljust(column) + text, max(column_count(), column + 20), " " * column)
