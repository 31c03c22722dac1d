"""`python -m pipelines serve`: writes a KServe InferenceService for a registered version.

The service runs the image of the steps with `python -m components serve`, which fetches the version from MLflow when a
pod starts. Fields that Knative forbids by default (a security context of the pod, node selectors, tolerations) are
only written where the cluster file needs them, so the same file fits both deployment modes of KServe.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from components.console import console
from components.errors import ConcordError
from components.settings import load_settings
from components.shared.io.atomic import write_text
from pipelines.cluster_settings import CLUSTER_VARIABLE, Cluster, load_cluster
from pipelines.compile import chosen_image
from pipelines.pod_spec import environment, placement, resources, security_context
from pipelines.pods import SCRATCH

PORT = 8080  # KServe's default
STEP = "register"  # the step whose pod has the resources that reading images takes
LOADING_SECONDS = 600  # for fetching and loading a model
TIMEOUT_SECONDS = 60  # of a request; MLflow's scoring server has the same
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # Knative appends to it, and a DNS label has 63 characters


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    sub.add_argument("--version", type=int, required=True, metavar="N", help="number of the registered version")
    sub.add_argument("--out", type=Path, metavar="FILE", help="the YAML file (default: standard output)")
    sub.add_argument("--model", help="registered model (default: that of the params)")
    sub.add_argument("--name", help="of the InferenceService (default: the registered model's, in lower case)")
    sub.add_argument(
        "--min-replicas", type=int, default=1, metavar="N",
        help="pods that are kept; 0: none while nobody asks, which needs KServe's Knative mode (default: %(default)s)",
    )  # fmt: skip
    sub.add_argument("--max-replicas", type=int, default=3, metavar="N", help="(default: %(default)s)")
    sub.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    sub.add_argument(
        "--cluster",
        type=Path,
        help=f"settings of the cluster (default: ${CLUSTER_VARIABLE}, or pipelines/clusters/default.yaml)",
    )
    sub.add_argument("--image", help="container image (default: $CONCORD_IMAGE, or the one in the cluster file)")


def command(args: argparse.Namespace) -> int:
    """Writes the service; returns exit code 0.

    Raises:
        ConcordError: a number is out of range, or the name is none that Kubernetes accepts.
    """
    if args.version < 1 or not 0 <= args.min_replicas <= args.max_replicas or args.max_replicas < 1:
        raise ConcordError("--version starts at 1, and 0 <= --min-replicas <= --max-replicas, which is at least 1.")
    cluster, model = load_cluster(args.cluster), args.model or load_settings(args.params).registered_model
    name = args.name or re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    if not NAME.fullmatch(name):
        raise ConcordError(
            f"{name!r}: an InferenceService has a name of at most 40 lower-case letters, digits and hyphens, a letter "
            "first. Give another with --name."
        )
    service = inference_service(name, model, args.version, cluster, chosen_image(args.image, cluster))
    service["spec"]["predictor"] |= {"minReplicas": args.min_replicas, "maxReplicas": args.max_replicas}
    text = yaml.safe_dump(service, sort_keys=False)
    if args.out is None:
        sys.stdout.write(text)
        return 0
    write_text(args.out, text)
    console.print(f"{args.out}: {model} version {args.version}. Next: kubectl apply -f {args.out}", markup=False)
    return 0


def inference_service(name: str, model: str, version: int, cluster: Cluster, image: str) -> dict[str, Any]:
    """The service as KServe's API has it.

    Args:
        name: of the service.
        model, version: what it serves.
        cluster: secrets, environment, user, and the pod of the register step.
        image: of the container.
    """
    pod = cluster.pod(STEP)
    predictor: dict[str, Any] = {
        "timeout": TIMEOUT_SECONDS,
        "automountServiceAccountToken": False,
        "containers": [_container(f"{model}/{version}", cluster, image)],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": cluster.scratch}}],
        **placement(cluster, pod),
    }
    if cluster.service_account is not None:
        predictor["serviceAccountName"] = cluster.service_account
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": {"concord/model": model, "concord/version": str(version)}},
        "spec": {"predictor": predictor},
    }


def _container(model: str, cluster: Cluster, image: str) -> dict[str, Any]:
    pod = cluster.pod(STEP)
    probe = {"httpGet": {"path": "/ping", "port": PORT}, "periodSeconds": 5, "timeoutSeconds": 5}
    return {
        "name": "kserve-container",
        "image": image,
        "imagePullPolicy": cluster.pull_policy,
        "command": ["python", "-m", "components", "serve"],
        "args": ["--model", model, "--host", "0.0.0.0", "--port", str(PORT)],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "env": environment(cluster, int(pod.cpu)),
        "resources": resources(pod),
        "readinessProbe": probe | {"failureThreshold": LOADING_SECONDS // 5},
        "securityContext": security_context(cluster),
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
    }
