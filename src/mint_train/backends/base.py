"""What a run needs of a backend. A training client has the SDK's own names, calls and futures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from mint_train.run_folder.description import QuantizationDescription
from mint_train.run_folder.records import Checkpoint
from mint_train.settings.sampling import Sampling

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from mint_train.sdk import Datum, types

BackendName = Literal["mint", "local"]
Result_co = TypeVar("Result_co", covariant=True)


class Future(Protocol[Result_co]):
    """A submitted request."""

    def result(self, timeout: float | None = None) -> Result_co:
        """Wait for the response.

        Raises:
            BackendError: the request failed.
        """
        ...


class Saved(Protocol):
    """The response to a save."""

    @property
    def path(self) -> str:
        """Where the backend keeps it; a later load takes this path."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion that a policy wrote."""

    tokens: list[int]
    """With the token that ended it, where one did."""
    logprobs: list[float]
    """Of each token under the policy that wrote it, at temperature 1, nats; empty if a service gives none."""
    ended: bool
    """Whether a token ended it, and not the number of tokens that it may have."""

    @property
    def text_tokens(self) -> list[int]:
        """The tokens without the one that ended it."""
        return self.tokens[:-1] if self.ended else self.tokens


class Sampler(Protocol):
    """A policy that writes completions."""

    @property
    def window(self) -> int | None:
        """The most tokens, prompt and completion together, that the model reads; None where unknown."""
        ...

    def draw(
        self, prompts: Sequence[list[int]], sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield the index of each prompt with its completions, as they are written.

        A prompt's completions depend on the prompts, the sampling and the seed, not on what is done: a
        caller that was stopped gets the same ones for the rest.

        Args:
            prompts: token ids of each, shorter than the window.
            sampling: how completions are drawn.
            done: indices of prompts whose completions are known.

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
    """A line for the user, if there is something to say."""
    clips: bool = True
    """Whether gradients are clipped to the norm that an update asks for."""
    layers_note: str = ""
    """A line for the user, if the service decides which layers get an adapter."""


@dataclass(frozen=True, slots=True)
class Samplers:
    """The base policy and the trained one, with their tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    before: Sampler
    after: Sampler
    close: Callable[[], None]


class Forwards(Protocol):
    """A policy that gives logprobs."""

    def forward(self, data: list[Datum], loss_fn: str) -> Future[types.ForwardBackwardOutput]:
        """Compute the logprobs of the target tokens, nats, float32, without gradients."""
        ...


class TrainingClient(Forwards, Protocol):
    """One adapter in training. Requests take effect in the order in which they are submitted."""

    gradients: Gradients
    takes_known_gradients: bool
    """Whether gradients that are known before the logprobs save a pass over the model here."""

    @property
    def window(self) -> int | None:
        """The most tokens, prompt and completion together, that the model reads; None where unknown."""
        ...

    @property
    def round_trip(self) -> float:
        """Seconds within which the fastest request so far was answered; 0 on this machine."""
        ...

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the base model."""
        ...

    def base_identity(self) -> Mapping[str, Any] | None:
        """Return what decides the logprobs that the base model gives here, with a fresh adapter or none.

        Returns:
            Values as JSON has them: equal ones stand for equal logprobs. None where that is not known.
        """
        ...

    def quantization(self, data: Sequence[Datum]) -> QuantizationDescription | None:
        """Compare the base model's logprobs with those of its unquantised weights.

        Returns:
            the difference on the trained tokens of `data`; None where this client has quantised nothing.

        Raises:
            MintTrainError: the unquantised weights cannot be loaded, or the computation fails.
        """
        ...

    def give_vocabulary(self, names: Sequence[str]) -> None:
        """Give, from now on, quantities of `batches.vocabulary` beside the logprobs of each token.

        The adapter as it is now is their reference. An output of `forward` then holds them by name, and a
        custom loss gets them behind its logprobs.

        Raises:
            BackendError: the backend has the logprobs of target tokens only.
        """
        ...

    def keep_reference(self) -> Forwards | None:
        """Return the policy as it is now, which stays so while this one is trained.

        None where a service computes: that takes another adapter.
        """
        ...

    def forward_backward_custom(
        self,
        data: list[Datum],
        loss_fn: Callable[[list[Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]],
        gradients: Sequence[torch.Tensor] | None = None,
    ) -> Future[types.ForwardBackwardOutput]:
        """Compute a loss of the logprobs on the client and add its gradients to the adapter's.

        `loss_fn` gets the datums and, per datum, float32 logprobs `[target tokens]` requiring grad. Behind
        them follows, name by name, what `give_vocabulary` asked for, as a tensor per datum too. What it
        raises is raised here, and nothing is added.

        `gradients`, one per tensor that `loss_fn` gets, are the loss's where they do not depend on the
        logprobs. With them one pass over the model is enough: `loss_fn` gets the logprobs of the pass that
        adds the gradients. On a service it is called, and raises, when the result is awaited.
        """
        ...

    def optim_step(self, adam_params: types.AdamParams) -> Future[Any]:
        """Update the adapter by AdamW with the gradients since the last update, and clear them."""
        ...

    def save_state(self, name: str) -> Future[Saved]:
        """Save weights and optimiser state under a name."""
        ...

    def load_state(self, path: str) -> Future[Any]:
        """Load the weights that `save_state` saved, without the optimiser."""
        ...

    def load_state_with_optimizer(self, path: str) -> Future[Any]:
        """Load what `save_state` saved."""
        ...

    def save_weights_for_sampler(self, name: str) -> Future[Saved]:
        """Save the weights alone, for sampling."""
        ...

    def open_sampler(self, name: str) -> AbstractContextManager[Sampler]:
        """Open what samples from the adapter as it is now; nothing of it changes.

        Args:
            name: of what is saved for it meanwhile; each name is taken once.

        Raises:
            BackendError: the weights cannot be saved.
        """
        ...

    def delete_state(self, path: str) -> None:
        """Delete what `save_state` saved; a backend that cannot warns once, and the state stays."""
        ...

    def close(self) -> None:
        """Cancel what is in flight, and release what the adapter holds on the service."""
        ...


class Backend(Protocol):
    """Where a run is computed, with the settings that it was chosen for."""

    @property
    def name(self) -> BackendName:
        """What `--backend` calls it."""
        ...

    @property
    def reason(self) -> str:
        """Why it was chosen, in a few words."""
        ...

    @property
    def processes(self) -> int:
        """How many processes of this machine compute together."""
        ...

    @property
    def model(self) -> str:
        """The base model as a user would name it."""
        ...

    @property
    def remote(self) -> bool:
        """Whether a service computes.

        Then a run may submit a step before the previous one is done, several runs go on at once, and states
        and weights stay on the service.
        """
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the base model's tokenizer, and nothing else of the model.

        Raises:
            UserError: it cannot be loaded.
        """
        ...

    def fetch_adapter(self, path: str, target: Path) -> None:
        """Copy weights for sampling, in PEFT's format, into an existing folder.

        Raises:
            MintTrainError: they are gone, or the service does not give them away.
        """
        ...

    def open_client(
        self, folder: Path, warn: Callable[[str], None], *, model: str | None = None, trains: bool = True
    ) -> TrainingClient:
        """Open a training client with a fresh adapter, which changes nothing yet.

        Args:
            folder: the run's; a backend that keeps states on this machine keeps them there.
            warn: tells the user one line about something that does not end the run.
            model: another base model than the run's.
            trains: whether gradients will be sent, so that a service must prove that it carries them out.

        Raises:
            UserError: the key, the address or the model is wrong.
            BackendError: the service cannot be reached or refuses.
        """
        ...

    def open_samplers(
        self, folder: Path, checkpoint: Checkpoint | None, warn: Callable[[str], None]
    ) -> Samplers:
        """Open what samples from the base policy and from a checkpoint, or from the base policy alone.

        Raises:
            UserError: the key, the address, the model or the checkpoint is wrong.
            BackendError: the service cannot be reached or refuses.
        """
        ...
