"""`mint-train export`: where a run's weights are, how near they are to the policy, and what serves them."""

from __future__ import annotations

from mint_train.observers.terminal import echo
from mint_train.trained.export import Exported


def print_exported(done: Exported) -> None:
    """Print where the weights are, what was found out about them, and the commands that serve them."""
    echo(f"The {done.form.noun} after step {done.checkpoint.step}: {done.folder}")
    if done.check is not None:
        echo(
            f"Checked: its logprobs of {done.check.texts} texts are the policy's within "
            f"{done.check.difference:.2g} nats; training moved them by up to {done.check.moved:.2g}."
        )
    if done.unchecked:
        echo(f"Not checked against the policy: {done.unchecked}")
    if done.uploaded:
        echo(f"Uploaded: {done.uploaded}")
    for line in done.serve:
        echo(line)
