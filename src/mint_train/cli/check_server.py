"""`mint-train check-server`: the conformance kit for services on the command line."""

from __future__ import annotations

import platform
from importlib.metadata import version

from mint_train.backends.mint.client import MintTrainingClient
from mint_train.backends.mint.session import open_session
from mint_train.conformance.service_checks import check_service
from mint_train.errors import counted
from mint_train.observers.terminal import echo, echo_problem
from mint_train.sdk import SDK_VERSION
from mint_train.settings.model import MINT_DEFAULT_MODEL, Settings


def check_server_and_print(settings: Settings) -> bool:
    """Run all checks of a service, print a line for each, and return whether a run can rely on it.

    Args:
        settings: base_url, api_key, model and rank count.

    Raises:
        MintTrainError: the service cannot be reached, refuses the key, lacks the model, or fails.
    """
    session = open_session(
        settings.model or MINT_DEFAULT_MODEL, settings.base_url, settings.api_key, echo_problem
    )

    def open_adapter(seed: int) -> MintTrainingClient:
        return MintTrainingClient(session, settings.model_copy(update={"seed": seed}), echo_problem)

    echo(
        f"mint-train {version('mint-train')}, tinker {SDK_VERSION}, Python {platform.python_version()}; "
        f"model {session.model}, LoRA rank {settings.rank}"
    )
    failed = 0
    try:
        for result in check_service(open_adapter):
            label = "ok" if result.passed else "FAILED" if result.needed else "no"
            echo(f"{label:<6}  {result.name}: {result.detail}")
            failed += result.needed and not result.passed
    finally:
        session.close()
    echo(
        f"A run cannot rely on this service: {counted(failed, 'check')} failed."
        if failed
        else "A run can rely on this service."
    )
    return not failed
