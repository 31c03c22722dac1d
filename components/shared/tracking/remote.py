"""The DVC remote as a step in a container sees it: outputs go there, and come from there, by what they hold.

DVC's own library reads and writes it, so `dvc pull` on another machine finds what a step pushed, and a step finds what
`dvc push` brought. Which remote: CONCORD_DVC_REMOTE, an address (`s3://bucket/prefix`) or the name of a remote in
.dvc/config; else the default remote of .dvc/config. Endpoint and credentials come from the environment, as boto3 reads
them (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE).
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
from components.shared.tracking.hashes import Content, dvc_content
from components.shared.tracking.lineage import ROOT

if TYPE_CHECKING:
    from dvc_data.hashfile.db import HashFileDB

VARIABLE = "CONCORD_DVC_REMOTE"
FILES = ("files", "md5")  # where a remote of DVC 3 has its objects
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds between tries, each of which has the library's own five

Result = TypeVar("Result")


class Remote:
    """A DVC remote.

    Attributes:
        address: as a person may see it.
    """

    def __init__(self, open_objects: "Callable[[], HashFileDB]", address: str) -> None:
        """`open_objects` connects anew; nothing is asked of the remote yet. `remote_of_environment` makes one."""
        self._open = open_objects
        self.address = masked(address)

    def check(self) -> None:
        """Asks the remote for something, so that a wrong key is told before hours of training and not after.

        Raises:
            ConcordError: it cannot be read.
        """

        def attempt(objects: "HashFileDB") -> None:
            objects.exists("0" * 32)
            if objects.fs.protocol == "s3":
                bucket = objects.path.strip("/").partition("/")[0]
                if not objects.fs.exists(bucket):
                    raise FileNotFoundError(f"there is no bucket {bucket}, or these credentials may not list it")

        self._tried("read it", attempt)

    def push(self, path: Path, content: Content) -> int:
        """Brings an output there: files first, several at once, then the list of a folder's files.

        What is there already is not sent again, so that after an error the next try goes on from here.

        Args:
            path: file or folder.
            content: what it holds, as its run has it.

        Returns:
            Number of objects that were sent.

        Raises:
            ConcordError: the remote is away or refuses, for longer than a minute; or `path` has changed since.
        """
        from dvc.fs import LocalFileSystem
        from dvc_data.hashfile.build import build
        from dvc_data.hashfile.transfer import transfer

        def attempt(objects: "HashFileDB") -> int:
            staged, _, found = build(objects, str(path.absolute()), LocalFileSystem(), "md5")
            if found.hash_info.value != content.md5:
                raise ConcordError(
                    f"{path}: changed since the step wrote it (hash {found.hash_info.value}, was {content.md5}), so it "
                    "is not pushed. Let nothing else write there, and run the step again."
                )
            with _errors() as errors:
                result = transfer(staged, objects, {found.hash_info}, shallow=False)
            if errors:
                raise errors[0]
            if result.failed:
                raise OSError(errno.EIO, f"{len(result.failed)} objects did not arrive")
            return len(result.transferred)

        return self._tried(f"push {path}", attempt)

    def fetch(self, md5: str, path: Path) -> bool:
        """Brings a folder from there to `path`, whole or not at all, and reads every byte again.

        Args:
            md5: of the folder, with `.dir`.

        Returns:
            Whether the remote has all of it.

        Raises:
            ConcordError: the remote is away or refuses; or what it has is not what its name says.
        """

        def attempt(objects: "HashFileDB") -> bool:
            try:
                self._bring(objects, md5, path)
            except FileNotFoundError:
                return False
            return True

        return self._tried(f"fetch {path}", attempt)

    def _bring(self, objects: "HashFileDB", md5: str, path: Path) -> None:
        from dvc.fs import LocalFileSystem
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree
        from dvc_objects.errors import ObjectFormatError
        from dvc_objects.fs import generic

        try:
            wanted = {"/".join(key): oid.value for key, _, oid in Tree.load(objects, HashInfo("md5", md5))}
        except ObjectFormatError:
            raise self._damaged(objects, md5, "it is no list of files") from None
        for name in wanted:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise self._damaged(objects, md5, f"it names a file outside the folder, {name!r}")
        with new_folder(path) as place:
            sources = [objects.oid_to_path(oid) for oid in wanted.values()]
            targets = [str(place / name) for name in wanted]
            if sources:
                generic.copy(objects.fs, sources, LocalFileSystem(), targets)
            if dvc_content(place).md5 != md5:
                wrong = next((name for name, oid in wanted.items() if dvc_content(place / name).md5 != oid), None)
                raise self._damaged(objects, wanted[wrong] if wrong else md5, "its bytes have another hash")

    def _damaged(self, objects: "HashFileDB", md5: str, how: str) -> ConcordError:
        place = objects.fs.unstrip_protocol(objects.oid_to_path(md5))
        return ConcordError(
            f"DVC remote {self.address}: {place} is not what its name says: {how}. Nobody can use it. Delete that "
            "object and run the step again (or `dvc push` from where the output is whole)."
        )

    def _tried(self, deed: str, attempt: "Callable[[HashFileDB], Result]") -> Result:
        """`attempt`, and again after a fault that may pass."""
        for wait in (*WAITS, None):
            try:
                return attempt(self._open())
            except ConcordError:
                raise
            except Exception as error:
                if wait is None or not _may_pass(error):
                    raise ConcordError(
                        f"DVC remote {self.address}: could not {deed}: {_reason(error)}. Check {VARIABLE}, the "
                        "endpoint (AWS_ENDPOINT_URL) and the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), "
                        "and that they may read and write there. Then run the step again: what has arrived is not "
                        "sent again."
                    ) from None
                told = f" DVC remote {self.address}: could not {deed}: {_reason(error)}; tried again in {wait:.0f} s"
                console.print(Text.assemble(("warning", "yellow"), told), soft_wrap=True)
                sleep(wait)
        raise AssertionError("unreachable")


def remote_of_environment(root: Path = ROOT) -> Remote | None:
    """The remote that the environment or the repository names; None where none is named.

    Raises:
        ConcordError: there is no such remote, or its address is none.
    """
    from dvc.config import Config, ConfigError, RemoteConfigError
    from dvc.fs import get_cloud_fs
    from dvc_data.hashfile.db import get_odb
    from dvc_objects.fs.errors import ConfigError as FileSystemError

    given = os.environ.get(VARIABLE, "")
    try:
        config = Config(str(root / ".dvc") if (root / ".dvc").is_dir() else None)
        name = config["core"].get("remote") if not given else None if "/" in given else given
        if not given and not name:
            return None
        kind, options, path = get_cloud_fs(config, **({"name": name} if name else {"url": given}))
    except (ConfigError, RemoteConfigError, FileSystemError, KeyError) as error:
        where = f"{VARIABLE}={masked(given)}" if given else f"{root / '.dvc' / 'config'}"
        raise ConcordError(
            f"{where}: no DVC remote to push to ({_reason(error)}). Give an address, s3://bucket/prefix, or the name "
            "of a remote that `dvc remote list` knows."
        ) from None

    def objects() -> "HashFileDB":
        files = kind(**options)
        return get_odb(files, files.join(path, *FILES), hash_name="md5")

    return Remote(objects, given if not name else config["remote"][name.lower()]["url"])


def _may_pass(error: Exception) -> bool:
    """Whether to try again: not where the remote has answered, and refuses."""
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
def _errors() -> Iterator[list[Exception]]:
    """What DVC would log of objects that did not arrive, with a traceback each: told once, by us."""
    caught: list[Exception] = []

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and isinstance(record.exc_info[1], Exception):
                caught.append(record.exc_info[1])

    logger, handler = logging.getLogger("dvc_data.hashfile.transfer"), Catch(logging.ERROR)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield caught
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
