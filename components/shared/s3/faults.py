"""What S3 and the way to it answer, told in words: what passes if one waits, and what does not.

No message of a server, a library or a proxy is repeated: keys, tokens and passwords have been seen in all of them.
"""

import os
import time
from threading import Event
from urllib.parse import urlsplit

from components.errors import ConcordError

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between two tries

_REFUSED = {401, 403}
_CREDENTIALS = (
    "Give credentials that may list and read it: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN too, "
    "if they are temporary), or AWS_PROFILE"
)


class StoppedError(Exception):
    """Another download of the same run has failed, so that this one ends as well."""


class RetryTimer:
    """How long a server may be silent before one gives up.

    Args:
        seconds: without any progress.
        stop: set where the waiting has lost its purpose.
    """

    def __init__(self, seconds: float, stop: Event) -> None:
        """It begins now."""
        self._seconds, self._stop = seconds, stop
        self.renew()

    def renew(self) -> None:
        """There was progress."""
        self._since, self._pause = time.monotonic(), FIRST_PAUSE

    def wait(self, error: Exception, place: str) -> None:
        """Waits a little, for longer each time, before what failed is tried again.

        Raises:
            ConcordError: `error` does not pass, or has not passed for too long.
            StoppedError: it is to stop.
            Exception: `error` itself, where it has nothing to do with S3.
        """
        if not _of_s3(error):
            raise error
        if not passes(error) or time.monotonic() - self._since >= self._seconds:
            raise s3_error(error, place, self._seconds) from None
        if self._stop.wait(self._pause):
            raise StoppedError
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def passes(error: Exception) -> bool:
    """Whether trying again may help: the server is away, too busy, or broke off."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError, SSLError
    from urllib3.exceptions import HTTPError

    if isinstance(error, ClientError):
        status, code = answer(error)
        return status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout", "Throttling")
    if isinstance(error, SSLError) and "CERTIFICATE" in str(error):
        return False
    return isinstance(error, ConnectionError | HTTPClientError | HTTPError | IncompleteReadError)


def _of_s3(error: Exception) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    return isinstance(error, BotoCoreError | ClientError | HTTPError)


def answer(error: Exception) -> tuple[int, str]:
    """Status and code of what a server answered; 0 and the error's kind where it did not."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return 0, type(error).__name__
    code = "".join(c for c in str(error.response.get("Error", {}).get("Code", "")) if c.isalnum())[:40]
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), code


def s3_error(error: Exception, place: str, waited: float) -> ConcordError:
    """What a person is told, and what to do about it.

    Args:
        place: the address or the object.
        waited: for how many seconds it was tried, where trying again could have helped.
    """
    from botocore.exceptions import (
        CredentialRetrievalError,
        NoAuthTokenError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
        TokenRetrievalError,
    )

    status, code = answer(error)
    unknown = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, NoAuthTokenError)
    if isinstance(error, (*unknown, ProfileNotFound, TokenRetrievalError)):
        return ConcordError(f"{place}: no credentials to ask with ({code}). {_CREDENTIALS}.")
    if passes(error):
        found = f"answers {status} {code}" if status else f"no whole answer ({code})"
        return ConcordError(
            f"{place}: {endpoint()}: {found}, for {waited:.0f} s now. Check AWS_ENDPOINT_URL and that the server runs, "
            "and run again: what was fetched stays, and is not fetched again."
        )
    if status in _REFUSED or code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return ConcordError(f"{place}: {endpoint()} refuses it ({status} {code}). {_CREDENTIALS}.")
    if code == "NoSuchBucket":
        return ConcordError(f"{place}: no such bucket at {endpoint()} (404). Correct the address or AWS_ENDPOINT_URL.")
    if status in (404, 412):
        return ConcordError(
            f"{place}: removed or replaced since it was listed ({status} {code}). Run again when nobody writes there: "
            "the rows must be of one version."
        )
    if status in (301, 307) or code == "AuthorizationHeaderMalformed":
        return ConcordError(f"{place}: in another region ({status} {code}). Give the bucket's: AWS_DEFAULT_REGION.")
    answered = f"answers {status} {code}" if status else f"cannot be talked to ({code})"
    return ConcordError(
        f"{place}: {endpoint()} {answered}. Check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the address."
    )


def endpoint() -> str:
    """The server that the environment names, without user and password."""
    url = endpoint_url()
    if not url:
        return "S3"
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "AWS_ENDPOINT_URL"


def endpoint_url() -> str | None:
    """As boto3 reads it."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
