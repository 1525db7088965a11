"""The MinT backend: the service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mint_train.backends.base import BackendName, Samplers, TrainingClient
from mint_train.backends.closing import closed_on_failure
from mint_train.run_folder.records import Checkpoint
from mint_train.settings.model import MINT_DEFAULT_MODEL, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mint_train.backends.mint.client import MintTrainingClient

SAMPLER_NAME = "to-sample"


@dataclass(frozen=True)
class MintBackend:
    """Trains and samples on the service; see `backends.base.Backend`."""

    settings: Settings
    reason: str
    name: ClassVar[BackendName] = "mint"
    remote: ClassVar[bool] = True
    processes: ClassVar[int] = 1

    @property
    def model(self) -> str:
        """The base model's name on the service."""
        return self.settings.model or MINT_DEFAULT_MODEL

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the base model's tokenizer from the hub."""
        from mint_train.backends.local.load import load_tokenizer

        return load_tokenizer(self.model)

    def fetch_adapter(self, path: str, target: Path) -> None:
        """Download the adapter from the service."""
        from mint_train.backends.mint.archive import fetch_adapter
        from mint_train.backends.mint.service import Service
        from mint_train.backends.mint.session import check_key, check_reachable, service_url

        service = Service(service_url(self.settings.base_url), check_key(self.settings.api_key))
        check_reachable(service)
        fetch_adapter(service, path, target)

    def open_client(
        self,
        folder: Path,  # noqa: ARG002 - the service keeps the states
        warn: Callable[[str], None],
        *,
        model: str | None = None,
        trains: bool = True,
    ) -> TrainingClient:
        """Create an adapter on the service."""
        return self._open(model or self.model, warn, trains=trains)

    def open_samplers(
        self,
        folder: Path,  # noqa: ARG002 - the service keeps the states
        checkpoint: Checkpoint | None,
        warn: Callable[[str], None],
    ) -> Samplers:
        """Open samplers of the base model and of a checkpoint's weights, saved for sampling if need be."""
        from mint_train.backends.mint.sampling import MintSampler

        client = self._open(self.model, warn, trains=False)
        with closed_on_failure(client):
            weights = None if checkpoint is None else weights_to_sample(client, checkpoint)
            before = MintSampler(client, base_model=self.model)
            after = before if weights is None else MintSampler(client, model_path=weights)
            return Samplers(client.get_tokenizer(), before, after, client.close)

    def _open(self, model: str, warn: Callable[[str], None], *, trains: bool) -> MintTrainingClient:
        from mint_train.backends.mint.client import open_mint_client

        return open_mint_client(self.settings, warn, model=model, trains=trains)


def weights_to_sample(client: MintTrainingClient, checkpoint: Checkpoint) -> str:
    """Return the path of a checkpoint's weights for sampling, which are saved if they have not been.

    Raises:
        UserError: the service does not have the checkpoint any more.
        BackendError: the service fails.
    """
    weights = checkpoint.sampler
    if weights is None or (client.session.server.samples_loaded_adapters and weights != checkpoint.state):
        client.load_state_with_optimizer(checkpoint.state).result()
        return str(client.save_weights_for_sampler(SAMPLER_NAME).result().path)
    return weights
