"""Checks buckets and MLflow from this machine, with this environment's credentials; a pod has its own."""

import os
from collections.abc import Mapping
from typing import Any

from components.s3_address import S3Address, is_s3, parse_location, parse_s3
from components.shared.io.secrets import masked
from components.shared.s3.errors import as_concord_error, endpoint_url, is_transient, status_and_code
from components.shared.tracking.remote import REMOTE_ENV
from pipelines.cluster_settings import Cluster
from pipelines.finding import Finding

TIMEOUT = 10  # seconds per request
TRACKING = "MLFLOW_TRACKING_URI"
ONLY_A_POD = "what the pods see, only a pod can tell"


def data_finding(data_uri: str | None) -> Finding:
    """Checks that there are objects at the address of the raw input."""
    what = "data"
    if data_uri is None:
        return Finding(what, "unknown", "give its address: --data-uri s3://bucket/prefix")
    try:
        address = parse_location(data_uri)
    except ValueError as error:
        return Finding(what, "error", f"--data-uri: {error}")
    if not isinstance(address, S3Address):
        return Finding(what, "error", "--data-uri: pods cannot read a local folder. Copy it to s3://bucket/prefix")
    return _bucket(what, address, endpoint_url(), filled=True)


def artifact_finding(root: str, provider: Mapping[str, Any]) -> Finding:
    """Checks the bucket of the pipeline root, at the launcher's endpoint.

    Args:
        root: address of the pipeline root.
        provider: how the launcher reaches the bucket (`pipeline_root`).
    """
    what = "artifact bucket"
    if not root.startswith("s3://"):
        return Finding(what, "unknown", f"{root}: {ONLY_A_POD}")
    try:
        address = parse_s3(root)
    except ValueError as error:
        return Finding(what, "error", f"pipeline root: {error}")
    endpoint = provider.get("endpoint")
    if endpoint and "://" not in endpoint:
        insecure = provider.get("disableSSL") in (True, "true")
        endpoint = f"{'http' if insecure else 'https'}://{endpoint}"
    return _bucket(what, address, endpoint or endpoint_url())


def remote_finding(cluster: Cluster) -> Finding:
    """Checks the bucket of the DVC remote that the steps push to."""
    what, value = "DVC remote", cluster.environment.get(REMOTE_ENV, "")
    address = value if "/" in value else _named_remote(value)
    if address is None:
        if value:
            return Finding(what, "error", f"{REMOTE_ENV}: {value} is no remote of .dvc/config. See: dvc remote list")
        return Finding(what, "ok", "none: nothing is pushed, and nothing taken from earlier runs")
    if not is_s3(address):
        return Finding(what, "unknown", f"{masked(address)}: {ONLY_A_POD}")
    try:
        return _bucket(what, parse_s3(address), endpoint_url())
    except ValueError as error:
        return Finding(what, "error", f"{REMOTE_ENV}: {error}")


def mlflow_finding(cluster: Cluster) -> Finding:
    """Checks that MLflow answers here and accepts this environment's login."""
    import requests

    what = "MLflow"
    uri = cluster.environment.get(TRACKING) or os.environ.get(TRACKING) or ""
    if not uri.startswith(("http://", "https://")):
        return Finding(what, "unknown", f"set {TRACKING} here to the pods' server; {ONLY_A_POD}")
    shown = masked(uri)
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    login = (os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    try:
        answer = requests.post(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
            json={"max_results": 1},
            headers={"Authorization": f"Bearer {token}"} if token else {},
            auth=login if any(login) and not token else None,
            timeout=TIMEOUT,
        )
    except requests.RequestException as error:
        return Finding(what, "unknown", f"{shown}: cannot be reached from here ({type(error).__name__}); {ONLY_A_POD}")
    if answer.status_code in (401, 403):
        remedy = "Set MLFLOW_TRACKING_USERNAME and _PASSWORD here, and in the pods' secret"
        return Finding(what, "error", f"{shown}: refuses the login ({answer.status_code}). {remedy}")
    if answer.status_code != 200 or "json" not in answer.headers.get("Content-Type", ""):
        return Finding(what, "error", f"{shown}: no MLflow answers here ({answer.status_code}). Correct {TRACKING}")
    return Finding(what, "ok", f"{shown} answers here; {ONLY_A_POD}")


def _named_remote(name: str) -> str | None:
    """Returns the address of a remote in .dvc/config, by default of the default one; None if there is none."""
    from dvc.config import Config

    config = Config()
    name = name or config["core"].get("remote") or ""
    remote = config["remote"].get(name.lower())
    return str(remote["url"]) if remote else None


def _bucket(what: str, address: S3Address, endpoint: str | None, filled: bool = False) -> Finding:
    """Lists one object of a folder in a bucket.

    Args:
        endpoint: address of the S3 server; None for AWS.
        filled: whether an empty folder is an error.
    """
    where = f"{address} at {masked(endpoint) if endpoint else 'AWS'}"
    prefix = address.prefix.partition("*")[0] if address.is_pattern else address.folder
    try:
        page = _client(endpoint).list_objects_v2(Bucket=address.bucket, Prefix=prefix, MaxKeys=1)
    except Exception as error:
        if is_transient(error) or status_and_code(error)[1] in ("NoCredentialsError", "ProfileNotFound"):
            reason = status_and_code(error)[1]
            return Finding(what, "unknown", f"{where}: not readable from here ({reason}); {ONLY_A_POD}")
        return Finding(what, "error", str(as_concord_error(error, where, 0)))
    if filled and not page.get("Contents"):
        return Finding(what, "error", f"{where}: no object. Correct --data-uri, or copy the data there")
    return Finding(what, "ok", f"{where} can be listed from here")


def _client(endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=TIMEOUT,
        read_timeout=TIMEOUT,
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"} if endpoint else None,
    )
    try:
        session = boto3.session.Session(region_name=os.environ.get("AWS_REGION"))
        return session.client("s3", endpoint_url=endpoint, config=config)
    except (BotoCoreError, ValueError) as error:
        raise as_concord_error(error, endpoint or "AWS", 0) from None
