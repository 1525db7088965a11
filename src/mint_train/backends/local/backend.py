"""The embedded backend: this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mint_train.backends.base import BackendName, Samplers, TrainingClient
from mint_train.backends.ranks import Led, processes_here
from mint_train.run_folder.records import Checkpoint
from mint_train.settings.model import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STARTER_MODEL = "a tiny starter model that answers simple questions"


@dataclass(frozen=True)
class LocalBackend:
    """Trains and samples in this process; see `backends.base.Backend`."""

    settings: Settings
    reason: str
    name: ClassVar[BackendName] = "local"
    remote: ClassVar[bool] = False

    @property
    def processes(self) -> int:
        """How many processes compute together: those that `torchrun` has started."""
        return processes_here()

    @property
    def model(self) -> str:
        """The base model as a user names it."""
        return self.settings.model or STARTER_MODEL

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the base model's tokenizer."""
        from mint_train.backends.local.load import load_tokenizer
        from mint_train.backends.local.starter_model import make_starter_tokenizer

        return load_tokenizer(self.settings.model) if self.settings.model else make_starter_tokenizer()

    def fetch_adapter(self, path: str, target: Path) -> None:
        """Copy the adapter."""
        shutil.copytree(path, target, dirs_exist_ok=True)

    def open_client(
        self,
        folder: Path,
        warn: Callable[[str], None],  # noqa: ARG002 - this backend only fails or succeeds
        *,
        model: str | None = None,
        trains: bool = True,  # noqa: ARG002 - gradients do not leave this process
    ) -> TrainingClient:
        """Load the base model and put a fresh adapter on it; states go into the folder."""
        from mint_train.backends.local.adapter import LoraShape
        from mint_train.backends.local.load import open_local_client

        settings = self.settings
        asked = (model or settings.model, LoraShape.of(settings), settings.seed)
        options: dict[str, Any] = {
            "dtype": settings.dtype,
            "quantize": settings.quantize,
            "max_tokens_in_flight": settings.max_tokens_in_flight,
            "gradient_checkpointing": settings.gradient_checkpointing,
        }
        if Led.leader is not None:
            return Led.leader.open(*asked, folder, options)
        return open_local_client(*asked, folder, **options)

    def open_samplers(
        self,
        folder: Path,
        checkpoint: Checkpoint | None,
        warn: Callable[[str], None],  # noqa: ARG002 - this backend only fails or succeeds
    ) -> Samplers:
        """Load the model and a checkpoint once; the base policy is the same model without the adapter."""
        from mint_train.backends.local.adapter import LoraShape
        from mint_train.backends.local.load import open_local_client
        from mint_train.backends.local.sampling import LocalSampler

        settings = self.settings
        shape = LoraShape.of(settings)
        client = open_local_client(
            settings.model, shape, settings.seed, folder, dtype=settings.dtype, quantize=settings.quantize
        )
        base, adapted = LocalSampler(client, adapter=False), LocalSampler(client, adapter=True)
        if checkpoint is not None:
            client.load_state(checkpoint.state).result()
        after = base if checkpoint is None else adapted
        return Samplers(client.get_tokenizer(), base, after, client.close)
