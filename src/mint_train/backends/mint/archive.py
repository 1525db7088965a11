"""Weights that leave the service: an adapter's archive, downloaded and unpacked, or its folder, copied."""

from __future__ import annotations

import shutil
import tarfile
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote
from urllib.request import url2pathname

import httpx

from mint_train.backends.mint.http_client import SHOWN, origin
from mint_train.backends.mint.service import API, Service
from mint_train.backends.peft_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLED_WEIGHTS
from mint_train.errors import BackendError, ServiceError, UserError
from mint_train.run_folder.files import require_space

ARCHIVE = "archive.tar.gz"
SAMPLER_WEIGHTS = "sampler_weights"
KEY_HEADER = "X-API-Key"
WAIT_SECONDS = 300.0
"""How long a service may take to make an archive, or fall silent while it sends one."""
PAUSE_SECONDS = 5.0
UNKNOWN = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)
NOT_YET = (httpx.codes.TOO_EARLY, httpx.codes.SERVICE_UNAVAILABLE)
REDIRECTS = 5
FILE = "file://"
THIS_MACHINE = ("127.0.0.1", "::1", "localhost")
FOLDERS = ("", "adapter")
"""Where a server's folder of a checkpoint holds the adapter; TuFT's is in the second."""


def fetch_adapter(service: Service, path: str, target: Path) -> None:
    """Fetch the two files of an adapter that the service keeps into a folder.

    A service sends an archive. One on this machine may name a folder of it instead, as TuFT does.

    Args:
        service: the address and the key.
        path: weights for sampling, `tinker://MODEL/sampler_weights/NAME`, or as SkyRL writes it,
            `tinker://MODEL/NAME`.
        target: an existing folder; nothing is written outside it.

    Raises:
        UserError: the service does not give these weights away.
        ServiceError: it does not answer, or the archive breaks off.
        BackendError: the archive is not an adapter's, or holds a path that leaves its folder.
    """
    archive = target / ARCHIVE
    try:
        with httpx.Client(timeout=WAIT_SECONDS, follow_redirects=False) as client:
            source = ask_for_archive(client, service, path)
            if isinstance(source, Path):
                copy_folder(source, target, path)
                return
            with closing(source) as answer, archive.open("wb") as file:
                file.writelines(answer.iter_bytes())
        unpack(archive, target, path)
    except httpx.HTTPError as error:
        reason = service.hide_key(str(error) or type(error).__name__)
        raise ServiceError(f"{path} could not be downloaded from {service.url}: {reason}") from None
    finally:
        archive.unlink(missing_ok=True)


def ask_for_archive(client: httpx.Client, service: Service, path: str) -> httpx.Response | Path:
    """Return the answer that holds the archive, not yet read, wherever the service sends us for it.

    The key goes to the service alone: another origin gets the address that the service named, no more. A
    service on this machine may name a folder of it, which is returned instead.

    Raises:
        UserError: the service does not give these weights away.
        httpx.HTTPError: it does not answer.
    """
    address = httpx.URL(service.url)
    model, name = parts_of(path)
    # MinT wants the kind of checkpoint in the address, SkyRL does not know it there
    names = [f"{SAMPLER_WEIGHTS}/{quote(name)}", quote(name)]
    urls = [f"{service.url}{API}/training_runs/{quote(model)}/checkpoints/{each}/archive" for each in names]
    url, end = httpx.URL(urls.pop(0)), time.monotonic() + WAIT_SECONDS
    for _ in range(REDIRECTS):
        headers = {"Accept-Encoding": "identity"}
        if origin(url) == origin(address):
            headers[KEY_HEADER] = service.key.get_secret_value()
        answer = client.send(client.build_request("GET", url, headers=headers), stream=True)
        while answer.status_code in NOT_YET and time.monotonic() < end:
            answer.close()
            time.sleep(PAUSE_SECONDS)
            answer = client.send(client.build_request("GET", url, headers=headers), stream=True)
        if answer.is_success:
            return answer
        answer.close()
        if answer.has_redirect_location:
            location = answer.headers["location"]
            folder = Path(url2pathname(location.removeprefix(FILE)))
            # a tunnel or a container has this machine's address, and not its files
            if location.startswith(FILE) and address.host in THIS_MACHINE and folder.is_dir():
                return folder
            url = followed(url, location, path)
        elif answer.status_code in UNKNOWN and urls:
            url = httpx.URL(urls.pop(0))
        else:
            break
    raise UserError(
        f"the service at {service.url} does not give away {path} (HTTP {answer.status_code}); ask its "
        "operator how weights leave it"
    )


def parts_of(path: str) -> tuple[str, str]:
    """Return the model and the name in the path of weights on the service.

    Raises:
        UserError: it has other parts.
    """
    model, _, rest = path.partition("://")[2].partition("/")
    *kind, name = rest.split("/")
    if kind not in ([], [SAMPLER_WEIGHTS]) or not model or not name or ".." in (model, name):
        raise UserError(f"{path} does not name weights on the service: tinker://MODEL/{SAMPLER_WEIGHTS}/NAME")
    return model, name


def followed(url: httpx.URL, location: str, path: str) -> httpx.URL:
    """Return the address that a redirect names.

    Raises:
        UserError: it is not an address that anything can be downloaded from.
    """
    target = url.join(location)
    if target.scheme not in ("http", "https"):
        raise UserError(
            f"the service keeps {path} on its own machine, at {location[:SHOWN]}, and does not send it; "
            "copy the adapter from there"
        )
    if url.scheme == "https" and target.scheme == "http":
        raise UserError(f"the service sends the download of {path} to {target.host} without encryption")
    return target


def unpack(archive: Path, target: Path, path: str) -> None:
    """Take an adapter's two files out of an archive, and nothing else.

    Raises:
        ServiceError: the archive breaks off.
        BackendError: it is not an adapter's, or holds a path that leaves its folder.
    """
    try:
        with tarfile.open(archive) as opened:
            members = {member.name: member for member in opened if not member.isdir()}
            for name in members:
                if name.startswith("/") or ".." in Path(name).parts:
                    raise BackendError(f"the archive of {path} holds {name!r}, which leaves its folder")
            for wanted in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                found = [member for name, member in members.items() if Path(name).name == wanted]
                if len(found) != 1 or not found[0].isfile():
                    raise BackendError(missing(path, wanted, [Path(name).name for name in members]))
                require_space(target, found[0].size, "the adapter")
                copy(opened, found[0], target / wanted)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())
        raise ServiceError(f"the archive of {path} breaks off or is broken: {reason}") from None


def copy_folder(source: Path, target: Path, path: str) -> None:
    """Copy an adapter's two files from a folder of this machine, and nothing else.

    Raises:
        UserError: the disk has not enough space.
        BackendError: the folder does not hold them as files of its own.
    """
    folders = [source / name for name in FOLDERS]
    folder = next((each for each in folders if (each / ADAPTER_CONFIG).exists()), source)
    for wanted in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        file = folder / wanted
        if not file.is_file() or file.is_symlink():
            raise BackendError(
                f"the service keeps {path} in {source}, which does not hold {wanted} as a file"
            )
        require_space(target, file.stat().st_size, "the adapter")
        shutil.copyfile(file, target / wanted)


def missing(path: str, wanted: str, names: list[str]) -> str:
    """Say that an archive does not hold an adapter's file."""
    if PICKLED_WEIGHTS in names:
        return (
            f"the archive of {path} holds {PICKLED_WEIGHTS}, a pickle, which can run code when it is loaded"
        )
    return f"the archive of {path} does not hold {wanted} as one file; it holds: {', '.join(names[:10])}"


def copy(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Copy a file of an archive to a new file."""
    content = archive.extractfile(member)
    if content is not None:  # as it always is for a regular file
        with content, target.open("xb") as file:
            shutil.copyfileobj(content, file)
