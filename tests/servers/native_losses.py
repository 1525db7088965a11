"""Take a step on a server with a loss of its own, and one with the loss that the collection has for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from typing import Any

import torch
from adapters import Adapter, moved

from mint_train.backends.mint.client import MintTrainingClient, open_mint_client
from mint_train.losses.weighted_sum import open_loss
from mint_train.sdk import Datum, types
from mint_train.settings.merge import load_settings
from mint_train.testing import make_batch, make_group

PROMPT = (5, 6, 7)
COMPLETIONS = ((11, 12, 13, 14, 15), (21, 22, 23, 24, 25), (31, 32, 33, 34, 35))
ADVANTAGES = (1.0, -0.5, 2.0)
LOG_RATIOS = (0.4, -0.4, 0.1, -0.05, 1.9)
"""How far the policy is from the one that sampled, token by token: within PPO's bounds, and beyond both."""
CLIPPED = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
WIDE = {"clip": 1e6, "clip_high": 1e6}
NATIVE: dict[str, tuple[dict[str, float] | None, str, dict[str, Any]]] = {
    "importance_sampling": (None, "ppo-clip", WIDE),
    "ppo": (CLIPPED, "ppo-clip", {"clip": 0.2, "clip_high": 0.2}),
    "cispo": ({"clip_low_threshold": 0.0, "clip_high_threshold": 5.0}, "cispo", {"upper": 5.0}),
}
"""A server's loss: its configuration, and the same loss here with its options."""
SHRINK = 1e-8
PROPORTIONAL = types.AdamParams(learning_rate=SHRINK * 1e6, beta1=0.0, beta2=0.0, eps=1e6)
"""AdamW whose step is the gradient, so that it shows its size too, but so small that the next step as good as
begins where this one did."""
TARGETS = len(PROMPT) - 1 + len(COMPLETIONS[0])


def data_of(old: Sequence[Sequence[float]]) -> list[Datum]:
    """Return the completions as a server's own loss takes them; a prompt's tokens have no advantage."""
    before = [0.0] * (len(PROMPT) - 1)
    return [
        Datum(
            model_input=types.ModelInput.from_ints([*PROMPT, *completion][:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData.from_torch(torch.tensor([*PROMPT, *completion][1:])),
                "logprobs": types.TensorData.from_torch(torch.tensor([*before, *one])),
                "advantages": types.TensorData.from_torch(
                    torch.tensor([*before, *[advantage] * len(completion)])
                ),
            },
        )
        for completion, one, advantage in zip(COMPLETIONS, old, ADVANTAGES, strict=True)
    ]


def batch_of(old: Sequence[Sequence[float]]) -> Any:
    """Return the completions as a loss of the collection takes them."""
    attached = [
        {"advantage": advantage, "reward": 0.0, "scored": 0.0, "count": 3.0, "old_logprobs": [0.0, 0.0, *one]}
        for one, advantage in zip(old, ADVANTAGES, strict=True)
    ]
    return make_batch(make_group(COMPLETIONS, attached, prompt=PROMPT))


def old_logprobs(client: MintTrainingClient) -> list[list[float]]:
    """Return the logprobs that the policy which sampled gave the completions' tokens."""
    batch = batch_of([[0.0] * len(LOG_RATIOS)] * len(COMPLETIONS))
    outputs = client.forward(batch.data, "cross_entropy").result().loss_fn_outputs
    own = [output["logprobs"].to_torch().tolist()[len(PROMPT) - 1 :] for output in outputs]
    return [[a - b for a, b in zip(one, LOG_RATIOS, strict=True)] for one in own]


def take_steps(client: MintTrainingClient) -> dict[str, str]:
    """Take a step of each loss; return the paths of the weights before the first one and after each."""
    old = old_logprobs(client)
    batch = batch_of(old)
    paths = {"before": save(client, "before")}
    for name, (configuration, ours, options) in NATIVE.items():
        loss = open_loss(ours, options | {"average": "none"})  # summed over each completion
        client.client.forward_backward(data_of(old), name, configuration).result()  # type: ignore[arg-type]
        client.optim_step(PROPORTIONAL).result()
        paths[f"native {name}"] = save(client, f"native-{name}")
        client.forward_backward_custom(
            batch.data, lambda _, logprobs, loss=loss: loss.compute(batch, logprobs, {})
        ).result()
        client.optim_step(PROPORTIONAL).result()
        paths[f"custom {name}"] = save(client, f"custom-{name}")
    return paths


def save(client: MintTrainingClient, name: str) -> str:
    """Return the path of the adapter's weights as they are now."""
    return client.save_weights_for_sampler(name).result().path


def compare_steps(
    paths: Mapping[str, str], load: Callable[[str], Adapter], factor: float
) -> dict[str, tuple[float, float]]:
    """Compare the gradients that the steps show.

    Args:
        paths: as `take_steps` gives them.
        load: loads the adapter of a path.
        factor: of the server's loss, which makes it the sum of each completion, averaged over completions.

    Returns:
        per loss: the norm of our gradient, and that of the difference relative to it.
    """
    adapters = {step: load(path) for step, path in paths.items()}
    gradients = {
        step: moved(adapters[before], adapters[step]) / SHRINK for before, step in pairwise(adapters)
    }
    found = {}
    for name in NATIVE:
        native, custom = [gradients[f"{kind} {name}"] for kind in ("native", "custom")]
        size = float(custom.norm())
        found[name] = (size, float((native * factor - custom).norm()) / size)
    return found


def main() -> None:
    """Print the paths as JSON, and everything else to standard error."""
    given = load_settings({"loss": "any", "rank": 8}, None)
    with redirect_stdout(sys.stderr):
        client = open_mint_client(given, print, model=str(given.model))
        paths = take_steps(client)
        client.close()
    print(json.dumps(paths))
