"""Classifies errors of S3 as transient or permanent, and turns them into messages with a remedy.

No message of a server, a library or a proxy is repeated, since all of them may contain keys, tokens or passwords.
"""

import os
import time
from threading import Event
from urllib.parse import urlsplit

from components.errors import ConcordError, RetryableError
from components.shared.io.secrets import masked_json

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between two attempts

_REFUSED = {401, 403}
_CREDENTIALS = (
    "Give credentials that may list and read it: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN too, "
    "if they are temporary), or AWS_PROFILE"
)


class StoppedError(Exception):
    """This download was stopped because another one of the same run failed."""


class RetryTimer:
    """Decides how long to retry without progress, and pauses between attempts.

    Args:
        seconds: time without any progress after which to give up.
        stop: set when waiting has become pointless.
    """

    def __init__(self, seconds: float, stop: Event) -> None:
        """Starts the timer."""
        self._seconds, self._stop = seconds, stop
        self.reset()

    def reset(self) -> None:
        """Restarts the timer after progress."""
        self._since, self._pause = time.monotonic(), FIRST_PAUSE

    def wait(self, error: Exception, location: str) -> None:
        """Pauses before the next attempt, for longer each time.

        Raises:
            ConcordError: `error` is permanent, or has lasted too long.
            StoppedError: `stop` was set.
            Exception: `error` itself, if it did not come from S3.
        """
        if not _is_s3_error(error):
            raise error
        if not is_transient(error) or time.monotonic() - self._since >= self._seconds:
            raise as_concord_error(error, location, self._seconds) from None
        if self._stop.wait(self._pause):
            raise StoppedError
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def is_transient(error: Exception) -> bool:
    """Whether a retry may succeed: the server is unreachable or too busy, or the connection broke."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError, SSLError
    from urllib3.exceptions import HTTPError

    if isinstance(error, ClientError):
        status, code = status_and_code(error)
        return status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout", "Throttling")
    if isinstance(error, SSLError) and "CERTIFICATE" in str(error):
        return False
    return isinstance(error, ConnectionError | HTTPClientError | HTTPError | IncompleteReadError)


def _is_s3_error(error: Exception) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    return isinstance(error, BotoCoreError | ClientError | HTTPError)


def status_and_code(error: Exception) -> tuple[int, str]:
    """HTTP status and S3 error code of the server's response; without a response 0 and the error's class name."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return 0, type(error).__name__
    code = "".join(c for c in str(error.response.get("Error", {}).get("Code", "")) if c.isalnum())[:40]
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), code


def as_concord_error(error: Exception, location: str, waited: float) -> ConcordError:
    """An error of S3 as a message that says what went wrong and what to do.

    Args:
        location: address of the folder or the object.
        waited: seconds during which the request was retried, if the error is transient.
    """
    from botocore.exceptions import (
        CredentialRetrievalError,
        NoAuthTokenError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
        TokenRetrievalError,
    )

    status, code = status_and_code(error)
    unknown = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, NoAuthTokenError)
    if isinstance(error, (*unknown, ProfileNotFound, TokenRetrievalError)):
        return ConcordError(f"{location}: no credentials ({code}). {_CREDENTIALS}.")
    if is_transient(error):
        problem = f"answers {status} {code}" if status else f"no complete response ({code})"
        return RetryableError(
            f"{location}: {endpoint()}: {problem}, after {waited:.0f} s of retries. Check AWS_ENDPOINT_URL and that "
            "the server runs, and run again: what was fetched is kept, and is not fetched again."
        )
    if status in _REFUSED or code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return ConcordError(f"{location}: {endpoint()} refuses access ({status} {code}). {_CREDENTIALS}.")
    if code == "NoSuchBucket":
        return ConcordError(
            f"{location}: no such bucket at {endpoint()} (404). Correct the address or AWS_ENDPOINT_URL."
        )
    if status in (404, 412):
        return ConcordError(
            f"{location}: removed or replaced since it was listed ({status} {code}). Run again when nobody writes "
            "there: all rows must come from one version."
        )
    if status in (301, 307) or code == "AuthorizationHeaderMalformed":
        return ConcordError(
            f"{location}: the bucket is in another region ({status} {code}). Set AWS_DEFAULT_REGION to that region."
        )
    problem = f"answers {status} {code}" if status else f"cannot be used ({code})"
    return ConcordError(
        f"{location}: {endpoint()} {problem}. Check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the address."
    )


def endpoint() -> str:
    """The server from the environment, without user name and password."""
    url = endpoint_url()
    if not url:
        return "S3"
    parts = urlsplit(masked_json(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "AWS_ENDPOINT_URL"


def endpoint_url() -> str | None:
    """The endpoint URL from the environment, as boto3 reads it."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
