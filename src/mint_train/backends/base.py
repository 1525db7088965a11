"""What the runner needs of a backend: the SDK's own names, calls and futures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from mint_train.sdk import Datum, types

Result_co = TypeVar("Result_co", covariant=True)


class Future(Protocol[Result_co]):
    """A submitted request."""

    def result(self, timeout: float | None = None) -> Result_co:
        """Wait for the answer.

        Raises:
            BackendError: the request failed.
        """
        ...


class Saved(Protocol):
    """The answer to a save."""

    @property
    def path(self) -> str:
        """Where the backend keeps it, to load it from."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn."""

    samples: int
    """Completions per prompt."""
    max_tokens: int
    """Most tokens of a completion."""
    temperature: float
    """0 takes the likeliest token each time."""
    seed: int


class Sampler(Protocol):
    """A policy that writes completions."""

    def sample(self, prompts: list[list[int]], sampling: Sampling) -> list[list[list[int]]]:
        """Return the tokens of the completions per prompt, without the end-of-sequence token.

        Raises:
            BackendError: the backend failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Gradients:
    """How gradients reach the backend."""

    form: str
    """The name of the service's loss that carries them; "exact" where no service comes between."""
    note: str = ""
    """A line for the user, where there is something to say."""


class TrainingClient(Protocol):
    """One adapter in training. Requests take effect in the order in which they are submitted."""

    gradients: Gradients

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the base model."""
        ...

    def forward(self, data: list[Datum], loss_fn: str) -> Future[types.ForwardBackwardOutput]:
        """Compute the logprobs of the target tokens, nats, float32, without gradients."""
        ...

    def forward_backward_custom(
        self,
        data: list[Datum],
        loss_fn: Callable[[list[Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]],
    ) -> Future[types.ForwardBackwardOutput]:
        """Compute a loss of the logprobs on the client and add its gradients to the adapter's.

        `loss_fn` gets the datums and, per datum, float32 logprobs `[target tokens]` requiring grad; what
        it raises is raised here, and nothing is added.
        """
        ...

    def optim_step(self, adam_params: types.AdamParams) -> Future[Any]:
        """Update the adapter by AdamW with the gradients since the last update, and clear them."""
        ...

    def save_state(self, name: str) -> Future[Saved]:
        """Save weights and optimiser state under a name."""
        ...

    def load_state_with_optimizer(self, path: str) -> Future[Any]:
        """Load what `save_state` saved."""
        ...

    def save_weights_for_sampler(self, name: str) -> Future[Saved]:
        """Save the weights alone, for sampling."""
        ...

    def delete_state(self, path: str) -> None:
        """Delete what `save_state` saved; a backend that cannot says so once, and the state stays."""
        ...

    def close(self) -> None:
        """Give up what is under way, and what the adapter holds on the service."""
        ...
