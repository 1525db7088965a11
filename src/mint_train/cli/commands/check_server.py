"""`mint-train check-server`."""

from __future__ import annotations

from typing import Any

import click

from mint_train.cli.options import Command, settings_options
from mint_train.errors import RUN_FAILED

CHECK_SERVER_SETTINGS = ("model", "rank", "base_url", "keep_adapters")


@click.command("check-server", cls=Command, short_help="Prove that a service trains as a run relies on.")
@click.pass_context
def check_server(ctx: click.Context, /, **given: Any) -> None:
    """Prove by experiment that a service trains as a run relies on. It takes a minute and a fresh adapter.

    Each line says what was tried and what came of it. "no" marks what a run can do without, "FAILED" what it
    cannot. Run it against a service before you trust it; the output is made to be pasted into an issue.
    """
    from mint_train.cli.check_server import check_server_and_print
    from mint_train.settings.merge import load_settings

    passed = check_server_and_print(load_settings({"loss": "none", "backend": "mint", **given}))
    ctx.exit(0 if passed else RUN_FAILED)


settings_options(check_server, CHECK_SERVER_SETTINGS, others=False)
