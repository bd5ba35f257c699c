"""Files behind an address, in a cache folder: downloads go on where they broke off, and are complete and checked or
absent.

Beside a cached NAME lies NAME.json with its address, size and sha256. NAME.partial is what has arrived of a file, and
NAME.partial.json what identifies its version on the server, so that no two versions are put together.

urllib and not a library: pooch starts again from the beginning, and huggingface_hub's http_get continues without asking
whether the file is still the same.
"""
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from filelock import FileLock
from tqdm import tqdm

from util.errors import UserError
from util.files import cannot_write, write_text

logger = logging.getLogger(__name__)

CACHE = "LITE_DETR_CACHE"  # environment variable: the folder of downloads
TRIES = 5  # in a row that bring nothing new
TIMEOUT = 30.0  # s without an answer
LONGEST_PAUSE = 30.0  # s between two tries
BLOCK = 2**20
# Eight or more hexadecimal digits that end a name, as torchvision's and DETR's: the start of the content's sha256. Only
# decimal digits are a date.
_HASH = re.compile(r"-(?!\d+\.)([0-9a-f]{8,64})\.\w+$")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
# 408 and 425 to 504: the server is busy, or something between it and us is.
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect from https to a weaker scheme."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise Refused(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Refused(Exception):
    """What another try would not change."""


class Broken(Exception):
    """A connection that ended early."""


@dataclass
class Download:
    """How files are fetched.

    open: a request and a timeout in s to a response, as urllib's, which follows the proxies of the environment. pause:
    s before the second try, doubled before each further one.
    """

    open: Callable[..., Any] = field(default_factory=lambda: urllib.request.build_opener(SecureRedirects).open)
    pause: float = 1.0
    timeout: float = TIMEOUT

    def to(self, path: Path, address: str, sha256: str = "", size: int | None = None) -> None:
        """Writes the file behind `address` to `path`, and what is known of it to its record.

        sha256: what the content's must start with; size: in bytes. Raises UserError for what cannot be fetched or is
        not what it should be; what has arrived then stays for the next call.
        """
        partial, before = _beside(path, ".partial"), _read_record(path)
        try:
            resumed = self._fetch(path, address, sha256, size)
            found = _sha256(partial)
            if resumed and not found.startswith(sha256):
                logger.warning("%s: the parts do not fit each other; downloading all of it again", address)
                partial.unlink()
                self._fetch(path, address, sha256, size)
                found = _sha256(partial)
            if not found.startswith(sha256):
                partial.unlink()
                raise UserError(f"{address} is not what it should be: the sha256 of its content starts with "
                                f"{found[:8]} instead of {sha256[:8]}. It was damaged or replaced; if you trust it, "
                                "download it yourself and pass the file")
            known = {"address": address, "size": _size(partial), "sha256": found}
            os.replace(partial, path)
            _write_record(path, known)
            _beside(partial, ".json").unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        if not sha256:
            self._tell(address, before, known)

    def _tell(self, address: str, before: dict[str, Any], known: dict[str, Any]) -> None:
        if before.get("address") == address and before.get("sha256", known["sha256"]) != known["sha256"]:
            logger.warning("%s has changed: its sha256 was %s and is now %s", address, before["sha256"],
                           known["sha256"])
        else:
            logger.warning("%s: no sha256 is published for it; recorded %s, with which the next use is compared",
                           address, known["sha256"])

    def _fetch(self, path: Path, address: str, sha256: str, size: int | None) -> bool:
        """Completes the partial file. Returns whether some of it is of an earlier connection."""
        partial = _beside(path, ".partial")
        failures, resumed, most = 0, False, _size(partial)
        by_hand = f"Without a network, put the file at {path}"
        while True:
            try:
                return self._connect(path, address, sha256, size) or resumed
            except Refused as error:
                raise UserError(f"cannot download {address}: {error}") from error
            except urllib.error.HTTPError as error:
                error.close()
                reason, wait = f"the server answers {error.code} {error.reason}", _retry_after(error)
                if error.code == 416:  # there is nothing behind what we have: it is of another version
                    partial.unlink(missing_ok=True)
                elif error.code not in _PASSING:
                    raise UserError(f"cannot download {address}: {reason}") from error
            except (Broken, urllib.error.URLError) as error:
                reason, wait = _reason(error), 0.0
                if _lasts(error):
                    raise UserError(f"cannot download {address}: {reason}. {by_hand}") from error
            arrived = _size(partial)
            resumed = resumed or arrived > 0
            failures = 1 if arrived > most else failures + 1
            most = max(most, arrived)
            if failures >= TRIES:
                kept = f"; {arrived / 1e6:.1f} MB of it are kept for the next try" if arrived else ""
                raise UserError(f"cannot download {address}: {reason}{kept}. {by_hand}")
            logger.warning("%s: %s; trying again", address, reason)
            time.sleep(min(max(self.pause * 2 ** (failures - 1), wait), LONGEST_PAUSE))

    def _connect(self, path: Path, address: str, sha256: str, size: int | None) -> bool:
        """One connection, which completes the partial file or ends in an error. Returns whether it was continued."""
        partial, record = _beside(path, ".partial"), _read_record(_beside(path, ".partial"))
        identity = str(record.get("identity", "")) if record.get("address") == address else ""
        identity = identity if identity.isascii() and identity.isprintable() else ""  # else it is no header
        have = _size(partial) if identity or sha256 and record.get("address") == address else 0
        request = urllib.request.Request(address, headers={"User-Agent": "lite-detr", "Accept-Encoding": "identity"})
        if have:
            request.add_header("Range", f"bytes={have}-")
            if identity:
                request.add_header("If-Range", identity)
        with _network(self.open, request, timeout=self.timeout) as response:
            if response.headers.get_content_type() == "text/html":
                raise Refused("the server answers with a web page instead of a file")
            continues, total = _extent(response, have, identity)
            have = have if continues else 0
            if size is not None and total is not None and total != size:
                raise Refused(f"it has {total} bytes instead of {size}")
            free = shutil.disk_usage(partial.parent).free
            if total is not None and total - have > free:
                raise Refused(f"it needs {(total - have) / 1e6:.0f} MB, and the disk of {partial.parent} has "
                              f"{free / 1e6:.0f} MB left")
            with partial.open("ab" if continues else "wb") as file:
                if not continues:
                    _write_record(partial, {"address": address, "identity": _identity(response)})
                with tqdm(total=total, initial=have, desc=path.name, unit="B", unit_scale=True, disable=None,
                          leave=False) as bar:
                    while block := _network(response.read, BLOCK):
                        file.write(block)
                        bar.update(len(block))
        arrived, wanted = _size(partial), total if total is not None else size
        if wanted is not None and arrived != wanted:
            raise Broken(f"the connection ended after {arrived} of {wanted} bytes")
        return continues


def cached(address: str, sha256: str = "", size: int | None = None, download: Download | None = None) -> Path:
    """Local path of the file behind an https address, from the cache folder; downloads it if it is not there, or if
    the one there is damaged. Of several processes one downloads and the others wait.

    sha256: of the content, or its start; without one, that in the file's name, else the one of its first download.
    Raises UserError for what cannot be downloaded or is not what it should be.
    """
    _check_address(address)
    path = cache_folder() / cache_name(address)
    sha256 = sha256 or hash_in_name(address)
    if path.is_file() and not _fault(path, address, sha256, size):
        logger.info("%s: using the downloaded %s", address, path)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            fault = _fault(path, address, sha256, size) if path.is_file() else "missing"
            if fault:  # still, when no other process is at work any more
                if path.is_file():
                    logger.warning("%s: the downloaded %s is damaged (%s); downloading it again", address, path, fault)
                (download or Download()).to(path, address, sha256, size)
    except (OSError, NotImplementedError) as error:  # the latter: a disk without locks
        raise UserError(f"cannot write to the folder of downloads {path.parent}: {error}. Choose another "
                        f"with the environment variable {CACHE}") from error
    return path


def _check_address(address: str) -> None:
    try:
        usable = urlsplit(address).scheme == "https" and address.isascii() and address.isprintable()
    except ValueError:
        usable = False
    if not usable or " " in address:
        raise UserError(f"{address!r}: only https addresses, with other letters as %XX, can be downloaded")


def cache_folder() -> Path:
    """That of the environment variable, else PyTorch's, which TORCH_HOME moves."""
    chosen = os.environ.get(CACHE)
    return Path(chosen).expanduser() if chosen else Path(torch.hub.get_dir()) / "checkpoints"


def cache_name(address: str) -> str:
    """The name of the file within the cache folder: that in the address, which cannot lead elsewhere, and, unless it
    has the content's hash, a hash of the address."""
    name = re.sub(r"[^\w.+-]", "_", urlsplit(address).path.rpartition("/")[2])[-150:]
    return name if hash_in_name(address) else f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{name}"


def hash_in_name(address: str) -> str:
    """The start of the content's sha256, as the name of a file tells it, or an empty string."""
    found = _HASH.search(urlsplit(address).path)
    return found[1] if found else ""


def _fault(path: Path, address: str, sha256: str, size: int | None) -> str:
    """What is wrong with a file in the cache; empty if nothing is. Records a file that somebody put there."""
    record, actual = _read_record(path), path.stat().st_size
    if record.get("address") != address:
        record = {}
    wanted = size if size is not None else record.get("size", actual)
    if actual != wanted:
        return f"{actual} bytes instead of {wanted}"
    found = _sha256(path)
    wanted = sha256 or str(record.get("sha256", found))
    if not found.startswith(wanted):
        return f"its sha256 starts with {found[:8]} instead of {wanted[:8]}"
    if not record:
        with suppress(UserError):  # a folder that others share is read-only
            _write_record(path, {"address": address, "size": actual, "sha256": found})
    return ""


def _network(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The call's result. What it raises cannot be mistaken for an error of the disk."""
    try:
        return call(*arguments, **options)
    except urllib.error.URLError:
        raise
    except http.client.HTTPException as error:
        raise (Refused if isinstance(error, http.client.InvalidURL) else Broken)(_reason(error)) from error
    except OSError as error:
        raise Broken(_reason(error)) from error
    except ValueError as error:  # of a redirect to what is no address
        raise Refused(_reason(error)) from error


def _extent(response: Any, have: int, identity: str) -> tuple[bool, int | None]:
    """Whether a response continues the first `have` bytes, and the size of the whole file, or None."""
    length = response.headers.get("Content-Length", "")
    if not have or response.status != 206:
        return False, int(length) if length.isdigit() else None
    found = _RANGE.match(response.headers.get("Content-Range", ""))
    if found and int(found[1]) == have and (not identity or _identity(response) in ("", identity)):
        return True, int(found[2])
    raise urllib.error.HTTPError(response.url, 416, "another range than the one asked for", response.headers, response)


def _identity(response: Any) -> str:
    """What If-Range takes: the entity tag of this very content, or when it was changed; empty if there is neither."""
    tag = response.headers.get("ETag", "")
    return response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag


def _retry_after(error: urllib.error.HTTPError) -> float:
    value = error.headers.get("Retry-After", "") if error.headers else ""
    return float(value) if value.isdigit() else 0.0


def _lasts(error: Exception) -> bool:
    """Whether another try would end the same: a certificate that is not trusted, a name that nobody has, or what urllib
    itself refuses, such as an address without a host."""
    reason = getattr(error, "reason", None)
    return isinstance(reason, (str, ssl.SSLCertVerificationError)) or (
        isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN)


def _reason(error: Exception) -> str:
    error = getattr(error, "reason", error)
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "no answer in time"
    return str(error) or type(error).__name__


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _read_record(path: Path) -> dict[str, Any]:
    """What is known of a file; empty if there is no record, or a damaged one."""
    try:
        record = json.loads(_beside(path, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(path: Path, record: dict[str, Any]) -> None:
    write_text(_beside(path, ".json"), json.dumps(record, indent=1) + "\n")
