"""`mint-train export`: where a run's weights were written, and how near they are to the policy."""

from __future__ import annotations

from mint_train.observers.terminal import echo
from mint_train.trained.export import Exported


def print_exported(done: Exported, *, merge: bool) -> None:
    """Print where the weights are, and what was found out about them."""
    echo(f"The {'merged model' if merge else 'adapter'} after step {done.checkpoint.step}: {done.folder}")
    if done.check is not None:
        echo(
            f"Checked: its logprobs of {done.check.texts} texts are the policy's within "
            f"{done.check.difference:.2g} nats; training moved them by up to {done.check.moved:.2g}."
        )
    if done.unchecked:
        echo(f"Not checked against the policy: {done.unchecked}")
