"""A session with the service: key, address and model are checked before an adapter is created."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import SecretStr

from mint_train.backends.closing import closed_on_failure
from mint_train.backends.mint.answers import AnswerTooLargeError, get
from mint_train.backends.mint.server_description import SKYRL, ServerDescription, check_sdk, describe_server
from mint_train.backends.mint.service import API, Service
from mint_train.errors import MintTrainError, OptionError, ServiceError, UserError
from mint_train.sdk import mint
from mint_train.settings.fields import without_credentials
from mint_train.settings.model import LAYER_KINDS, Settings

NO_BLANK = re.compile(r"[!-~]+")
"""Printable ASCII without blanks: what an HTTP header can carry, and every key is made of."""
KEY_PREFIXES = ("sk-", "tml-", "eyJ")
LOGGERS = ("tinker", "httpx", "httpcore")
CONNECT_SECONDS = 10.0
CONNECT_TRIES = 3
PAUSE_SECONDS = 0.5
LAYERS_OF_SKYRL = {"attention", "mlp"}


@dataclass(frozen=True, slots=True)
class Session:
    """An open session, and the base model that its adapters are for."""

    service: Service
    client: mint.ServiceClient
    model: str
    server: ServerDescription

    def close(self) -> None:
        """End the session."""
        self.client.holder.close()  # type: ignore[no-untyped-call]

    def base_identity(self, settings: Settings) -> Mapping[str, Any] | None:
        """Return address, version and model of the service, and the day; None where one is not known.

        Args:
            settings: they shape the fresh adapter, which may play a part in how a service computes.
        """
        if not self.server.digest or self.model.startswith((".", "/", "~")):  # a folder may get other weights
            return None
        shape = [settings.rank, sorted(settings.lora_targets)]
        return {
            "service": self.service.url,
            "model": self.model,
            "server": self.server.digest,
            "shape": shape,
            # a service may be given other weights under the same name
            "day": time.strftime("%Y-%m-%d", time.gmtime()),
        }

    def create_adapter(self, settings: Settings) -> mint.TrainingClient:
        """Create a fresh LoRA adapter of the settings' rank, seed and targets.

        Raises:
            OptionError: the settings ask for what the API cannot say.
            MintTrainError: the service refuses, has no free adapter slot, or fails.
        """
        targets = targets_of(settings)
        self.check_layers(settings)
        return self.service.call(
            f"create an adapter for {self.model}",
            lambda: self.client.create_lora_training_client(
                base_model=self.model,
                rank=settings.rank,
                seed=settings.seed,
                train_mlp="mlp" in targets,
                train_attn="attention" in targets,
                train_unembed="unembed" in targets,
            ),
        )

    def refuse_another_shape(self, path: str, rank: int) -> None:
        """Refuse a state of another base model or rank, as far as the service says what it is of.

        Raises:
            UserError: naming both.
        """
        rest = self.client.create_rest_client()
        try:
            info = self.service.call(
                f"describe {path}", lambda: rest.get_weights_info_by_tinker_path(path).result()
            )
        except MintTrainError:
            return  # not every service can, and whether there is such a state the load itself says
        if info.base_model != self.model:
            raise UserError(f"{path} is an adapter of {info.base_model}, and this run trains {self.model}")
        if info.lora_rank not in (None, rank):
            raise UserError(f"{path} has rank {info.lora_rank}, this run {rank}; give --rank")

    def check_layers(self, settings: Settings) -> None:
        """Refuse layers that are asked for of a service that would adapt others.

        Raises:
            OptionError: the service decides itself which layers get an adapter, and these are not known to
                be the ones.
        """
        known = LAYERS_OF_SKYRL if self.server.title == SKYRL else None
        if settings.lora_targets and self.server.chooses_layers and set(settings.lora_targets) != known:
            given, advice = (
                ",".join(settings.lora_targets),
                "; give attention,mlp, as it does, or" if known else ";",
            )
            raise OptionError(
                f"--lora-targets {given}: this service decides itself which layers get an adapter{advice} "
                "leave the option out"
            )

    def layers_note(self, settings: Settings) -> str:
        """Return a line for the user, if the service decides which layers get an adapter."""
        if not self.server.chooses_layers or settings.lora_targets:
            return ""
        return (
            "The service decides which layers get an adapter; SkyRL's are those of attention and MLP, never "
            "the output layer. A run that is to be exported is trained with --lora-targets attention,mlp."
        )


def open_session(
    model: str,
    base_url: str | None,
    api_key: SecretStr | None,
    tell: Callable[[str], None] = lambda _: None,
) -> Session:
    """Check key, address and model, and open a session.

    Args:
        model: the base model.
        base_url: the address of the service.
        api_key: its key.
        tell: tells the user one line: of a wait that lasts, or of what the service leaves open.

    Raises:
        UserError: the key is missing, malformed or refused, the SDK does not fit, or the service
            lacks the model.
        BackendError: the service cannot be reached or fails.
    """
    service = Service(service_url(base_url), check_key(api_key), tell=tell)
    hide_key_in_logs(service)
    check_reachable(service)
    server = describe_server(service)
    check_sdk(server, service.url)
    client = service.call(
        "open a session",
        lambda: mint.ServiceClient(
            base_url=service.url, api_key=service.key.get_secret_value(), http_client=service.connection
        ),
    )
    session = Session(service, client, model, server)
    with closed_on_failure(session):  # its heartbeats would go on
        supported = service.call("name its models", client.get_server_capabilities).supported_models
        check_model(model, [str(entry.model_name) for entry in supported], service)
    if not supported:
        tell(f"the service at {service.url} lists no models, so whether it has {model} is not known")
    return session


def targets_of(settings: Settings) -> Collection[str]:
    """Return which of the three kinds of layers get an adapter on the service.

    Raises:
        OptionError: single layers, or an alpha, which only the embedded backend can take.
    """
    if settings.lora_alpha is not None:
        raise OptionError("--lora-alpha: a service has an alpha of its own; leave the option out")
    for target in settings.lora_targets:
        if target not in LAYER_KINDS:
            raise OptionError(
                f"--lora-targets {target}: a service knows {', '.join(LAYER_KINDS)}, and no single layers"
            )
    return settings.lora_targets or LAYER_KINDS


def service_url(base_url: str | None) -> str:
    """Return the address of the service, by default MinT's, which `mindlab-toolkit` names.

    Raises:
        UserError: without that package no default exists: a key must not go to a service of another maker.
    """
    url = base_url or os.environ.get("TINKER_BASE_URL")
    if not url:
        raise UserError("no service is named: set MINT_BASE_URL to its address, or install mindlab-toolkit")
    return str(without_credentials(url)).rstrip("/")


def hide_key_in_logs(service: Service) -> None:
    """Keep the key out of what the SDK logs: a service may repeat it."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = service.hide_key(record.getMessage()), ()
        return True

    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] in LOGGERS]:
        logging.getLogger(name).addFilter(hide)


def check_key(api_key: SecretStr | None) -> SecretStr:
    """Refuse a missing key or one of no known kind, before anything is sent.

    Raises:
        UserError: without showing the key.
    """
    if api_key is None:
        raise UserError(
            "no key for MinT: set MINT_API_KEY (a new run may train on this machine, with --backend local)"
        )
    if not api_key.get_secret_value().startswith(KEY_PREFIXES):
        raise UserError(
            f"the key in MINT_API_KEY is of no known kind: it must start with {' or '.join(KEY_PREFIXES[:2])}"
        )
    if not NO_BLANK.fullmatch(api_key.get_secret_value()):
        raise UserError(
            "the key in MINT_API_KEY holds a blank, a line break or a letter that no key has: copy it again"
        )
    return api_key


def check_reachable(service: Service) -> None:
    """Ask for an answer, any answer, within seconds: the SDK itself would retry for minutes.

    Raises:
        ServiceError: there is none.
        UserError: the address is no URL.
    """
    for tries_left in reversed(range(CONNECT_TRIES)):
        try:
            status = get(f"{service.url}{API}/healthz", CONNECT_SECONDS).status_code
            problem = f"is out of order (HTTP {status}); try again later"
            if status < httpx.codes.INTERNAL_SERVER_ERROR:
                return
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise UserError(f"MINT_BASE_URL={service.url} is not an address: {error}") from None
        except AnswerTooLargeError as error:
            raise UserError(f"the service at {service.url} {error}; check MINT_BASE_URL") from None
        except httpx.TimeoutException:
            problem = (
                f"did not answer within {CONNECT_SECONDS:.0f} s; try again later, or check MINT_BASE_URL"
            )
            break
        except httpx.HTTPError as error:
            problem = f"cannot be reached ({error}); check MINT_BASE_URL"
        if tries_left:
            time.sleep(PAUSE_SECONDS)
    raise ServiceError(f"the service at {service.url} {problem}")


def check_model(model: str, supported: list[str], service: Service) -> None:
    """Refuse a model that the service does not list: some servers would train another one instead.

    Raises:
        UserError: with what it has.
    """
    if supported and model not in supported:
        raise UserError(
            f"the service at {service.url} has no model {model}; it has: {', '.join(sorted(supported))}"
        )
