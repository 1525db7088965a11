"""What a service says of its API, and whether the installed SDK fits it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import httpx

from mint_train.backends.mint.answers import AnswerTooLargeError, get
from mint_train.backends.mint.service import API, Service
from mint_train.errors import UserError
from mint_train.sdk import ONE_ROUTE, SDK_MINOR, SDK_VERSION, SUPPORTED

DESCRIPTION_SECONDS = 10.0
PAUSES = (0.5, 0.5, 0.0)
"""Seconds after each try."""
SKYRL, TUFT = "Tinker API Mock", "TuFT"
"""The titles of the descriptions that two servers give."""
LAST_TWO_ROUTES, LAST_WITHOUT_OPTIMIZER_CONFIG = (0, 24), (0, 28)
"""The last minor versions of the SDK before a change that a server does not understand."""
OLD_SDK, NEW_SDK = "tinker==0.22.0", "tinker==0.25.0"

Span = tuple[tuple[int, int], tuple[int, int]]
"""The oldest and the newest minor version."""


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """A service's OpenAPI description; empty if it has none."""

    title: str = ""
    paths: frozenset[str] = frozenset()
    digest: str = ""
    """Changes with the version of the service."""
    adapter_options: frozenset[str] | None = None
    """What it lets a client say of a new adapter; None where it does not tell."""

    @property
    def chooses_layers(self) -> bool:
        """Whether it takes no notice of which layers are to get an adapter."""
        return self.adapter_options is not None and "train_unembed" not in self.adapter_options

    @property
    def divides_by_weights(self) -> bool:
        """Whether its `cross_entropy` divides a text's gradient by the sum of the text's weights."""
        return self.title == SKYRL

    @property
    def forgets_states(self) -> bool:
        """Whether saved states are lost when their adapter is given up."""
        return self.title == TUFT

    @property
    def samples_loaded_adapters(self) -> bool:
        """Whether weights saved for sampling can be used only as long as their adapter is loaded."""
        return self.title == SKYRL


def describe_server(service: Service) -> ServerDescription:
    """Read a service's description of its API; one that has none is not worse for it.

    If it is lost on the way it is asked for again: what is known of a server depends on it.
    """
    for pause in PAUSES:
        try:
            answer = get(f"{service.url}/openapi.json", DESCRIPTION_SECONDS)
            if not answer.is_server_error:
                return read_description(answer)
        except (httpx.TimeoutException, AnswerTooLargeError):
            break
        except httpx.TransportError:
            pass
        time.sleep(pause)
    return ServerDescription()


def read_description(answer: httpx.Response) -> ServerDescription:
    """Read an answer, which need not be a description."""
    try:
        described = answer.raise_for_status().json()
        title, paths = str(described["info"]["title"]), frozenset(described["paths"])
        options = adapter_options(described)
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ServerDescription()
    return ServerDescription(title, paths, hashlib.sha256(answer.content).hexdigest(), options)


def adapter_options(described: Any) -> frozenset[str] | None:
    """Return the fields of a new adapter in a description, or None where it does not list them."""
    schemas = described.get("components", {}).get("schemas", {})
    found: dict[str, Any] = next(
        (schema for name, schema in schemas.items() if name.lower() == "loraconfig"), {}
    )
    return frozenset(found["properties"]) if "properties" in found else None


def check_sdk(server: ServerDescription, url: str) -> None:
    """Refuse an SDK that no server was driven with, or whose requests this service does not know.

    Raises:
        UserError: with what is installed, what is needed, and how to install it.
    """
    if not SUPPORTED[0] <= SDK_MINOR <= SUPPORTED[1]:
        raise UserError(
            f"tinker {SDK_VERSION} is installed, and mint-train works with {span(SUPPORTED)}: "
            f'run `pip install "{NEW_SDK}"`'
        )
    fits = fitting_versions(server)
    if not fits[0] <= SDK_MINOR <= fits[1]:
        install = f'"{OLD_SDK}"' if fits[1] < ONE_ROUTE else f'--no-deps "{NEW_SDK}" zstandard'
        raise UserError(
            f"the service at {url} needs tinker {span(fits)}, and {SDK_VERSION} is installed: "
            f"run `pip install {install}`"
        )


def fitting_versions(server: ServerDescription) -> Span:
    """Return the oldest and the newest minor version of the SDK that a service understands."""
    if f"{API}/forward_backward" not in server.paths:
        return SUPPORTED  # it says nothing of its API
    takes_old = f"{API}/forward" in server.paths
    if takes_old and server.title == SKYRL:
        return SUPPORTED[0], LAST_TWO_ROUTES
    newest = LAST_WITHOUT_OPTIMIZER_CONFIG if server.title == TUFT else SUPPORTED[1]
    return SUPPORTED[0] if takes_old else ONE_ROUTE, newest


def span(versions: Span) -> str:
    """Write two minor versions as `0.22 to 0.30`."""
    return " to ".join(".".join(map(str, bound)) for bound in versions)
