"""`python -m pipelines check`: whether a cluster has what a run needs. It reads, and changes nothing.

What it asks Kubernetes comes from the cluster of this pod, or of kubectl's context; buckets and MLflow are asked from
this machine, with this environment's credentials.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.errors import ConcordError
from components.shared.io.secrets import masked
from components.shared.kubeflow.kubernetes_api import DEFAULT_NAMESPACE, ForbiddenError, Kubernetes, connect_kubernetes
from pipelines.cluster_objects import has_kubeflow, node_findings, pipeline_root, quick_findings, right_findings
from pipelines.cluster_settings import CLUSTER_VARIABLE, Cluster, load_cluster
from pipelines.connection import add_connection_arguments, connect, kubeflow_errors
from pipelines.finding import Finding
from pipelines.stores import artifact_finding, data_finding, mlflow_finding, remote_finding

STYLES = {"ok": "green", "error": "bold red", "unknown": "yellow"}
NEWEST = (2, 17)  # Kubeflow Pipelines that the pipeline is made for


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    sub.add_argument(
        "--cluster",
        type=Path,
        help=f"settings of the cluster (default: ${CLUSTER_VARIABLE}, or pipelines/clusters/default.yaml)",
    )
    add_connection_arguments(sub)
    sub.add_argument("--data-uri", help="address of the raw input, as for submit")


def command(args: argparse.Namespace) -> int:
    """Prints a table on stdout; returns 1 if there is an error in it, else 0."""
    cluster = load_cluster(args.cluster)
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    errors = 0
    for finding in findings(args, cluster):
        table.add_row(finding.what, Text(finding.state, STYLES[finding.state]), Text(masked(finding.text)))
        errors += finding.state == "error"
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(table)
    console.print(f"{errors} errors" if errors != 1 else "1 error")
    return 1 if errors else 0


def findings(args: argparse.Namespace, cluster: Cluster) -> Iterator[Finding]:
    """Yields everything that can be found out about a run with these arguments."""
    kubernetes = _kubernetes(args.namespace)
    yield _kubeflow(args, kubernetes)
    if isinstance(kubernetes, Kubernetes):
        yield Finding("Kubernetes", "ok", f"{kubernetes.name}, namespace {kubernetes.namespace}")
        yield from quick_findings(kubernetes, cluster)
        yield from node_findings(kubernetes, cluster)
        yield from right_findings(kubernetes)
    else:
        yield kubernetes
    yield data_finding(args.data_uri)
    yield _artifacts(kubernetes, cluster)
    yield remote_finding(cluster)
    yield mlflow_finding(cluster)


def refuse_errors(namespace: str | None, cluster: Cluster) -> None:
    """Checks what takes a second: the objects that a run refers to by name.

    Raises:
        ConcordError: one of them is missing. A cluster that cannot be asked is no error.
    """
    kubernetes = _kubernetes(namespace, unsure=False)
    if not isinstance(kubernetes, Kubernetes):
        return
    errors = [finding for finding in quick_findings(kubernetes, cluster) if finding.state == "error"]
    if errors:
        lines = "".join(f"\n  {finding.what}: {masked(finding.text)}" for finding in errors)
        raise ConcordError(
            f"{kubernetes.name} lacks what the run needs:{lines}\nNothing was submitted. If the run goes to another "
            "cluster than this one, add --check off."
        )


def _kubernetes(namespace: str | None, unsure: bool = True) -> Kubernetes | Finding:
    """Returns the cluster if it can be asked and has Kubeflow Pipelines; else why not.

    Args:
        unsure: what counts where these credentials may not see whether it has.
    """
    what, others = "Kubernetes", "secrets, volume claim, nodes and rights are not checked"
    try:
        kubernetes = connect_kubernetes(namespace)
        try:
            found = has_kubeflow(kubernetes)
        except ForbiddenError:  # as for people who have a namespace of their own
            found = unsure
    except ConcordError as error:
        return Finding(what, "unknown", f"{error}; {others}")
    if found:
        return kubernetes
    reason = f"{kubernetes.name} has no service ml-pipeline in namespace {DEFAULT_NAMESPACE}: another cluster?"
    return Finding(what, "unknown", f"{reason} {others}")


def _kubeflow(args: argparse.Namespace, kubernetes: Kubernetes | Finding) -> Finding:
    what = "Kubeflow Pipelines"
    try:
        with kubeflow_errors("reach the server"):
            client = connect(args)
            health = client._healthz_api.api_client.call_api(
                "/apis/v2beta1/healthz",
                "GET",
                auth_settings=["Bearer"],
                response_type="object",
                _return_http_data_only=True,
            )
    except ConcordError as error:
        return Finding(what, "error", str(error))
    version = str((health or {}).get("tag_name") or _installed_version(kubernetes))
    if not version:
        return Finding(what, "ok", "answers; its version is unknown")
    numbers = tuple(int(part) for part in version.lstrip("v").split(".")[:2] if part.isdigit())
    older = ": older than 2.17, so it may ignore settings of the cluster file" if numbers < NEWEST else ""
    return Finding(what, "ok", f"version {version}{older}")


def _installed_version(kubernetes: Kubernetes | Finding) -> str:
    """Returns the version that Kubeflow's manifests write into a config map; empty if it is not there."""
    if not isinstance(kubernetes, Kubernetes):
        return ""
    path = f"/api/v1/namespaces/{DEFAULT_NAMESPACE}/configmaps/pipeline-install-config"
    try:
        data: dict[str, Any] = kubernetes.get(path).get("data") or {}
    except (ConcordError, LookupError):
        return ""
    return str(data.get("appVersion") or "")


def _artifacts(kubernetes: Kubernetes | Finding, cluster: Cluster) -> Finding:
    root = cluster.pipeline_root or ""
    provider: dict[str, Any] = {}
    if isinstance(kubernetes, Kubernetes):
        try:
            root, provider = pipeline_root(kubernetes, cluster)
        except (ConcordError, ValueError) as error:
            return Finding("artifact bucket", "unknown", str(error))
    if not root:
        return Finding("artifact bucket", "unknown", "the pipeline root is Kubeflow's default, which is unknown here")
    return artifact_finding(root, provider)
