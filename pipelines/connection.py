"""Connects to Kubeflow Pipelines, and reports its errors without secrets.

The cluster: --host or KF_PIPELINES_ENDPOINT; without either, the cluster of this pod or of the current kubectl context.
The login: KF_PIPELINES_TOKEN (a bearer token), KF_PIPELINES_COOKIE (a session cookie), or KF_PIPELINES_SA_TOKEN_PATH (a
file with a service account's token, read again before it expires). Credentials are never printed.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ConcordError
from components.shared.io.secrets import masked

if TYPE_CHECKING:
    from kfp import Client

HOST = "KF_PIPELINES_ENDPOINT"
TOKEN = "KF_PIPELINES_TOKEN"
COOKIE = "KF_PIPELINES_COOKIE"
TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"
REQUEST_TIMEOUT = 20  # seconds; an integer, since the API's client ignores a float


def add_connection_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of every command that talks to Kubeflow Pipelines."""
    sub.add_argument(
        "--host", help=f"address of Kubeflow Pipelines (default: ${HOST}, or the cluster of this pod or of kubectl)"
    )
    sub.add_argument("--namespace", help="namespace of the runs, if Kubeflow has many users")
    sub.add_argument("--ca-cert", type=Path, help="CA file for the host's certificate")


def connect(args: argparse.Namespace) -> "Client":
    """Returns kfp's client. The host is asked first, because the client itself takes half a minute to report an error.

    Raises:
        ConcordError: nothing answers at the host, or it refuses the credentials.
    """
    import kfp

    host = args.host or os.environ.get(HOST)
    if host:
        if not host.startswith(("http://", "https://")):
            host = f"https://{host}"
        _check_host(host.rstrip("/"), args.ca_cert)
    elif os.environ.get(TOKEN):  # with a token, the client does not look for a cluster
        raise ConcordError(
            f"{TOKEN} is set, but no host is. Set --host or {HOST}, or unset {TOKEN} to use kubectl's login."
        )
    credentials = None
    if os.environ.get(TOKEN_FILE):
        credentials = kfp.client.ServiceAccountTokenVolumeCredentials(path=os.environ[TOKEN_FILE])
    client = kfp.Client(
        host=host,
        existing_token=os.environ.get(TOKEN) or None,
        cookies=os.environ.get(COOKIE) or None,
        credentials=credentials,
        ssl_ca_cert=str(args.ca_cert) if args.ca_cert else None,
    )
    _set_request_timeout(client)
    return client


def _set_request_timeout(client: "Client") -> None:
    """Sets a timeout for all requests, so that a host that never answers cannot block `--wait` for ever."""
    rest = client._run_api.api_client.rest_client  # shared by all of the client's APIs
    request = rest.request

    def request_with_timeout(*args: Any, _request_timeout: Any = None, **kwargs: Any) -> Any:
        return request(*args, _request_timeout=_request_timeout or REQUEST_TIMEOUT, **kwargs)

    rest.request = request_with_timeout


def _check_host(host: str, ca_cert: Path | None) -> None:
    """Raises ConcordError unless Kubeflow Pipelines answers at the host and accepts the credentials."""
    import requests

    headers = {}
    if os.environ.get(TOKEN):
        headers["Authorization"] = f"Bearer {os.environ[TOKEN]}"
    elif os.environ.get(TOKEN_FILE):
        headers["Authorization"] = f"Bearer {Path(os.environ[TOKEN_FILE]).read_text(encoding='utf-8').strip()}"
    if os.environ.get(COOKIE):
        headers["Cookie"] = os.environ[COOKIE]
    answer = requests.get(
        f"{host}/apis/v2beta1/healthz",
        headers=headers,
        timeout=REQUEST_TIMEOUT,
        verify=str(ca_cert) if ca_cert else True,
        allow_redirects=False,  # a redirect leads to a login page, which answers 200
    )
    if answer.status_code in (301, 302, 303, 307, 308, 401, 403):
        raise ConcordError(
            f"{host}: refuses the login ({answer.status_code}). Set {TOKEN}, {COOKIE} or {TOKEN_FILE}; if the session "
            "has expired, log in again."
        )
    if answer.status_code != 200 or "json" not in answer.headers.get("Content-Type", ""):
        raise ConcordError(
            f"{host}: Kubeflow Pipelines does not answer here ({answer.status_code}). Is a path missing (/pipeline)?"
        )


@contextlib.contextmanager
def kubeflow_errors(action: str) -> Iterator[None]:
    """Turns errors of kfp and of the network into a ConcordError without secrets, and suppresses what kfp prints."""
    import kfp_server_api
    import requests
    import urllib3

    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _logging_disabled():
            warnings.simplefilter("ignore")
            yield
    except kfp_server_api.ApiException as error:
        reason = f"{error.status} {error.reason}: {_message(error.body)}" if error.status else str(error.reason)
        raise ConcordError(f"Kubeflow Pipelines: could not {action}: {masked(reason)}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, TimeoutError, OSError, ValueError) as error:
        reason = masked(str(error).strip().partition("\n")[0])[:300]
        raise ConcordError(f"Kubeflow Pipelines: could not {action}: {reason}. Check --host or {HOST}.") from None


@contextlib.contextmanager
def _logging_disabled() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _message(body: Any) -> str:
    """Extracts the message from the API's JSON, without the server's stack trace."""
    try:
        content = json.loads(body)
        return str(content.get("message") or content.get("error") or "")[:500]
    except (TypeError, ValueError, AttributeError):
        return str(body or "")[:200]


def page_address(args: argparse.Namespace, page: str, created_id: str) -> str:
    """Returns the address of an object's page in Kubeflow; its id where the host is unknown."""
    host = args.host or os.environ.get(HOST)
    if not host:
        return created_id
    address = host if host.startswith(("http://", "https://")) else f"https://{host}"
    return f"{address.rstrip('/')}/#/{page}/details/{created_id}"
