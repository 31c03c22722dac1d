"""The DVC remote of a step in a container: outputs are pushed to it and fetched from it by content hash.

DVC's own library reads and writes the remote, so `dvc pull` finds what a step pushed, and a step finds what `dvc push`
uploaded. The remote is CONCORD_DVC_REMOTE, an address (`s3://bucket/prefix`) or the name of a remote in .dvc/config;
by default it is the default remote of .dvc/config. Endpoint and credentials come from the environment variables that
boto3 reads (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE).
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from rich.text import Text

from components.console import console
from components.errors import ConcordError
from components.shared.io.atomic import new_folder
from components.shared.io.secrets import masked
from components.shared.io.transient import concord_error
from components.shared.tracking.hashes import Content, dvc_content
from components.shared.tracking.lineage import ROOT

if TYPE_CHECKING:
    from dvc_data.hashfile.db import HashFileDB

REMOTE_ENV = "CONCORD_DVC_REMOTE"
OBJECTS = ("files", "md5")  # path of the objects in a remote of DVC 3
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds; in each attempt the library itself tries five times

Result = TypeVar("Result")


class Remote:
    """A DVC remote.

    Attributes:
        address: for messages, without secrets.
    """

    def __init__(self, open_objects: "Callable[[], HashFileDB]", address: str) -> None:
        """`open_objects` opens a new connection on each call; none is opened here. See `configured_remote`."""
        self._open = open_objects
        self.address = masked(address)

    def check(self) -> None:
        """Reads from the remote, so that wrong credentials are reported before hours of training.

        Raises:
            ConcordError: the remote cannot be read.
        """

        def attempt(objects: "HashFileDB") -> None:
            objects.exists("0" * 32)
            if objects.fs.protocol == "s3":
                bucket = objects.path.strip("/").partition("/")[0]
                if not objects.fs.exists(bucket):
                    raise FileNotFoundError(f"bucket {bucket} does not exist, or these credentials may not list it")

        self._with_retries("read it", attempt)

    def push(self, path: Path, content: Content) -> int:
        """Uploads an output: first the files, in parallel, then the list of a folder's files.

        Objects that the remote already has are not sent again, so a retry continues where the last attempt stopped.

        Args:
            path: file or folder.
            content: its content when the step wrote it.

        Returns:
            Number of objects that were sent.

        Raises:
            RetryableError: the remote cannot be reached for one minute.
            ConcordError: the remote refuses, or `path` has changed since the step wrote it.
        """
        from dvc.fs import LocalFileSystem
        from dvc_data.hashfile.build import build
        from dvc_data.hashfile.transfer import transfer

        def attempt(objects: "HashFileDB") -> int:
            staged, _, built = build(objects, str(path.absolute()), LocalFileSystem(), "md5")
            if built.hash_info.value != content.md5:
                raise ConcordError(
                    f"{path}: changed since the step wrote it (hash {built.hash_info.value}, was {content.md5}), so it "
                    "is not pushed. Make sure that nothing else writes there, and run the step again."
                )
            with _captured_transfer_errors() as errors:
                result = transfer(staged, objects, {built.hash_info}, shallow=False)
            if errors:
                raise errors[0]
            if result.failed:
                raise OSError(errno.EIO, f"{len(result.failed)} objects were not uploaded")
            return len(result.transferred)

        return self._with_retries(f"push {path}", attempt)

    def fetch(self, md5: str, path: Path) -> bool:
        """Downloads a folder to `path` atomically and verifies its hash.

        Args:
            md5: hash of the folder, with `.dir`.

        Returns:
            Whether the remote has the whole folder; if not, nothing is written.

        Raises:
            ConcordError: the remote cannot be reached or refuses; or the content of an object does not match its hash.
        """

        def attempt(objects: "HashFileDB") -> bool:
            try:
                self._download(objects, md5, path)
            except FileNotFoundError:
                return False
            return True

        return self._with_retries(f"fetch {path}", attempt)

    def _download(self, objects: "HashFileDB", md5: str, path: Path) -> None:
        from dvc.fs import LocalFileSystem
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree
        from dvc_objects.errors import ObjectFormatError
        from dvc_objects.fs import generic

        try:
            hashes = {"/".join(key): oid.value for key, _, oid in Tree.load(objects, HashInfo("md5", md5))}
        except ObjectFormatError:
            raise self._damaged(objects, md5, "it is not a list of files") from None
        for name in hashes:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise self._damaged(objects, md5, f"it names a file outside the folder, {name!r}")
        with new_folder(path) as folder:
            sources = [objects.oid_to_path(oid) for oid in hashes.values()]
            targets = [str(folder / name) for name in hashes]
            if sources:
                generic.copy(objects.fs, sources, LocalFileSystem(), targets)
            if dvc_content(folder).md5 != md5:
                wrong = next((name for name, oid in hashes.items() if dvc_content(folder / name).md5 != oid), None)
                raise self._damaged(objects, hashes[wrong] if wrong else md5, "its bytes have another hash")

    def _damaged(self, objects: "HashFileDB", md5: str, reason: str) -> ConcordError:
        location = objects.fs.unstrip_protocol(objects.oid_to_path(md5))
        return ConcordError(
            f"DVC remote {self.address}: {location} does not match its hash: {reason}. Delete that object and run the "
            "step again (or run `dvc push` where the output is intact)."
        )

    def _with_retries(self, action: str, attempt: "Callable[[HashFileDB], Result]") -> Result:
        """Calls `attempt`, and again after transient errors; `action` completes "could not ..."."""
        for delay in (*RETRY_DELAYS, None):
            try:
                return attempt(self._open())
            except ConcordError:
                raise
            except Exception as error:
                if delay is None or not _is_transient(error):
                    raise concord_error(
                        f"DVC remote {self.address}: could not {action}: {_reason(error)}. Check {REMOTE_ENV}, "
                        "the endpoint (AWS_ENDPOINT_URL), and that the credentials (AWS_ACCESS_KEY_ID, "
                        "AWS_SECRET_ACCESS_KEY) have permission to read and write there. Then run the step again: "
                        "objects that were uploaded are not sent again.",
                        error,
                    ) from None
                message = f" DVC remote {self.address}: could not {action}: {_reason(error)}; retrying in {delay:.0f} s"
                console.print(Text.assemble(("warning", "yellow"), message), soft_wrap=True)
                sleep(delay)
        raise AssertionError("unreachable")


def configured_remote(root: Path = ROOT) -> Remote | None:
    """Returns the remote that the environment or the repository configures; None if neither does.

    Raises:
        ConcordError: the configured remote does not exist, or its address is invalid.
    """
    from dvc.config import Config, ConfigError, RemoteConfigError
    from dvc.fs import get_cloud_fs
    from dvc_data.hashfile.db import get_odb
    from dvc_objects.fs.errors import ConfigError as FileSystemError

    value = os.environ.get(REMOTE_ENV, "")
    try:
        config = Config(str(root / ".dvc") if (root / ".dvc").is_dir() else None)
        name = config["core"].get("remote") if not value else None if "/" in value else value
        if not value and not name:
            return None
        kind, options, path = get_cloud_fs(config, **({"name": name} if name else {"url": value}))
    except (ConfigError, RemoteConfigError, FileSystemError, KeyError) as error:
        source = f"{REMOTE_ENV}={masked(value)}" if value else f"{root / '.dvc' / 'config'}"
        raise ConcordError(
            f"{source}: not a DVC remote ({_reason(error)}). Set an address, s3://bucket/prefix, or the name of a "
            "remote that `dvc remote list` shows."
        ) from None

    def objects() -> "HashFileDB":
        files = kind(**options)
        return get_odb(files, files.join(path, *OBJECTS), hash_name="md5")

    return Remote(objects, value if not name else config["remote"][name.lower()]["url"])


def _is_transient(error: Exception) -> bool:
    """Whether a retry may succeed. It cannot when the remote answered and refused."""
    from dvc_objects.fs.errors import AuthError, ConfigError, RemoteMissingDepsError

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return False
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"):
        return False
    return not isinstance(error, PermissionError | FileNotFoundError | AuthError | ConfigError | RemoteMissingDepsError)


def _reason(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return masked(text)[:300].rstrip(".")


@contextmanager
def _captured_transfer_errors() -> Iterator[list[Exception]]:
    """Collects the errors of failed objects, which DVC would log with a traceback each, so that we report them once."""
    errors: list[Exception] = []

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and isinstance(record.exc_info[1], Exception):
                errors.append(record.exc_info[1])

    logger, handler = logging.getLogger("dvc_data.hashfile.transfer"), Catch(logging.ERROR)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield errors
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
