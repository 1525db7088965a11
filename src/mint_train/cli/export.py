"""`mint-train export`: where a run's weights are, how near they are to the policy, and what serves them."""

from __future__ import annotations

from mint_train.observers.terminal import echo, say
from mint_train.trained.export import Exported


def print_exported(done: Exported) -> None:
    """Print where the weights are, what was found out about them, and the commands that serve them."""
    say(f"The {done.form.noun} after step {done.checkpoint.step}: {done.folder}")
    if done.check is not None:
        say(
            f"Checked: its logprobs of {done.check.texts} texts are the policy's within "
            f"{done.check.difference:.2g} nats; training moved them by up to {done.check.moved:.2g}."
        )
    if done.unchecked:
        say(f"Not checked against the policy: {done.unchecked}")
    if done.uploaded:
        say(f"Uploaded: {done.uploaded}")
    for line in done.serve:
        echo(line)  # whole, to be copied
