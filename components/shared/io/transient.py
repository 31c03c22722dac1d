"""Tells errors that may not occur again from those that would: a lost connection from a refused login.

Libraries' errors are known by the names of their classes, since importing the libraries takes seconds.
"""

import re
from collections.abc import Iterator

from components.errors import ConcordError, RetryableError

BUSY = (408, 429)  # HTTP statuses that ask for another attempt, besides those from 500 on
_LOST = {
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "builtins.ConnectionError",
    "builtins.TimeoutError",
    "httpx2.TransportError",
    "concurrent.futures.process.BrokenProcessPool",
    "requests.exceptions.ChunkedEncodingError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.RetryError",
    "requests.exceptions.Timeout",
    "socket.gaierror",
    "sqlalchemy.exc.OperationalError",
    "torch.AcceleratorError",
    "torch.distributed.DistError",
    "urllib3.exceptions.IncompleteRead",
    "urllib3.exceptions.MaxRetryError",
    "urllib3.exceptions.ProtocolError",
    "urllib3.exceptions.TimeoutError",
}
_PERMANENT = {
    "builtins.BrokenPipeError",  # a reader of this process's output has ended
    "huggingface_hub.errors.OfflineModeIsEnabled",
    "ssl.SSLCertVerificationError",
}
_REFUSALS = ("CERTIFICATE_VERIFY_FAILED", "authentication failed")  # of TLS and of databases, inside other errors
_BUSY_CODES = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")  # of MLflow's answers
# Some errors of accelerators, and of PyTorch's worker processes, have no class of their own.
_MESSAGE = re.compile(
    r"\b(CUDA|HIP|NCCL|CUBLAS|cuBLAS|cuDNN) error\b|DataLoader worker \(pid.*(killed by signal|exited unexpectedly)"
)


def is_transient(error: BaseException) -> bool:
    """Whether `error`, or what caused it, may not occur again.

    An answer of a server counts by its HTTP status: 408, 429 and all from 500 on are transient, others are not.
    """
    verdicts = [_verdict(each) for each in _causes(error)]
    return True in verdicts and False not in verdicts


def concord_error(message: str, cause: BaseException) -> ConcordError:
    """The error with this message; one that can be retried if `cause` is transient."""
    return (RetryableError if is_transient(cause) else ConcordError)(message)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause's cause and so on, as a traceback shows them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _verdict(error: BaseException) -> bool | None:
    """Whether the error is transient, not looking at its cause; None if it does not say."""
    if status := _http_status(error):
        return status in BUSY or status >= 500
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if names & _PERMANENT or any(words in str(error) for words in _REFUSALS):
        return False
    lost = names & _LOST or getattr(error, "error_code", None) in _BUSY_CODES
    return True if lost or (isinstance(error, RuntimeError) and _MESSAGE.search(str(error))) else None


def _http_status(error: BaseException) -> int:
    """The status of the response that the error holds, as requests, botocore and others store it; 0 without one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    status = getattr(response, "status_code", 0)
    return status if isinstance(status, int) else 0
