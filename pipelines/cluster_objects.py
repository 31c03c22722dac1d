"""Checks that Kubernetes has what a run needs: secrets, volume claim, the launcher's settings, nodes, rights."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import yaml

from components.errors import ConcordError
from components.shared.kubeflow.kubernetes_api import DEFAULT_NAMESPACE, Kubernetes
from components.shared.kubeflow.train_job import API as TRAINER
from components.steps import STEPS
from pipelines.cluster_settings import Cluster, Pod
from pipelines.finding import Finding

LAUNCHER = "kfp-launcher"
KUBEFLOW_ROOT = "minio://mlpipeline/v2/artifacts"  # Kubeflow's own default
# What `submit --wait` reads: verb, resource, API group.
RIGHTS = (("list", "pods", ""), ("get", "pods/log", ""), ("list", "events", ""), ("list", "workflows", "argoproj.io"))


def has_kubeflow(kubernetes: Kubernetes) -> bool:
    """Whether the cluster has Kubeflow Pipelines; kubectl's context may name another one than --host.

    Raises:
        ConcordError: the cluster cannot be asked.
    """
    try:
        kubernetes.get(f"/api/v1/namespaces/{DEFAULT_NAMESPACE}/services/ml-pipeline")
    except LookupError:
        return False
    return True


def quick_findings(kubernetes: Kubernetes, cluster: Cluster) -> Iterator[Finding]:
    """Yields findings on objects that a run refers to by name. An autoscaler makes none of them."""
    for secret in cluster.secrets:
        keys = secret.env.values()
        yield _asked(f"secret {secret.name}", lambda: _secret(kubernetes, secret.name, keys, secret.optional))  # noqa: B023
    for name in cluster.pull_secrets:
        yield _asked(f"secret {name}", lambda: _secret(kubernetes, name, (), False))  # noqa: B023
    several = [step for step in STEPS if cluster.nodes(step) > 1]
    if cluster.checkpoints:
        what = f"volume claim {cluster.checkpoints}"
        yield _asked(what, lambda: _claim(kubernetes, str(cluster.checkpoints), several))
    if several:
        yield _asked(f"runtime {cluster.training_runtime}", lambda: _runtime(kubernetes, cluster.training_runtime))
    if cluster.service_account:
        yield _asked(f"service account {cluster.service_account}", lambda: _account(kubernetes, cluster))
    yield _asked("pipeline root", lambda: _launcher(kubernetes, cluster))


def node_findings(kubernetes: Kubernetes, cluster: Cluster) -> Iterator[Finding]:
    """Yields for each step whether a node has what its pod asks for, whatever else runs there now."""
    try:
        nodes = kubernetes.get("/api/v1/nodes")["items"]
    except (ConcordError, LookupError) as error:
        yield Finding("nodes", "unknown", str(error))
        return
    for step in STEPS:
        yield _node(step, cluster.pod(step), nodes)


def right_findings(kubernetes: Kubernetes) -> Iterator[Finding]:
    """Yields whether these credentials may read what `submit --wait` prints."""
    for verb, resource, group in RIGHTS:
        what = f"right to {verb} {resource}"
        yield _asked(what, lambda: _right(kubernetes, verb, resource, group))  # noqa: B023


def pipeline_root(kubernetes: Kubernetes, cluster: Cluster) -> tuple[str, dict[str, Any]]:
    """Returns where artifacts are stored, and how the launcher reaches that bucket: endpoint, credentials, ...

    Raises:
        ConcordError: the cluster cannot be asked.
        ValueError: the launcher's config map is malformed.
    """
    try:
        data = kubernetes.get(f"{kubernetes.path('configmaps')}/{LAUNCHER}").get("data") or {}
    except LookupError:
        data = {}
    root = cluster.pipeline_root or data.get("defaultPipelineRoot") or KUBEFLOW_ROOT
    bucket = root.partition("://")[2].partition("/")[0]
    try:
        s3 = (yaml.safe_load(data.get("providers") or "") or {}).get("s3") or {}
        own = [each for each in s3.get("overrides") or [] if each.get("bucketName") == bucket]
        return root, dict(own[0] if own else s3.get("default") or {})
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        remedy = "Correct it as in pipelines/README.md, step 4"
        raise ValueError(f"config map {LAUNCHER}: providers cannot be read. {remedy}") from None


def _asked(what: str, ask: Callable[[], Finding]) -> Finding:
    """Returns the finding; unknown where the cluster does not answer or refuses."""
    try:
        return ask()
    except ConcordError as error:
        return Finding(what, "unknown", str(error))


def _secret(kubernetes: Kubernetes, name: str, keys: Iterable[str], optional: bool) -> Finding:
    """Compares the secret's keys with those that the cluster file names; no value is looked at."""
    what, wanted = f"secret {name}", sorted(set(keys))
    namespace = f"-n {kubernetes.namespace}"
    try:
        has = kubernetes.get(f"{kubernetes.path('secrets')}/{name}").get("data") or {}
    except LookupError:
        if optional:
            return Finding(what, "ok", "missing, and optional")
        literals = "".join(f" --from-literal={key}=..." for key in wanted)
        remedy = f"Create it: kubectl {namespace} create secret generic {name}{literals}"
        return Finding(what, "error", f"missing in namespace {kubernetes.namespace}. {remedy}")
    if missing := [key for key in wanted if key not in has]:
        remedy = f"Add it: kubectl {namespace} edit secret {name}; or remove it from secrets in the cluster file"
        return Finding(what, "ok" if optional else "error", f"has no key {', '.join(missing)}. {remedy}")
    return Finding(what, "ok", ", ".join(wanted) or "exists")


def _claim(kubernetes: Kubernetes, name: str, several: list[str]) -> Finding:
    """Compares the claim with what steps need, of which these run on several nodes."""
    what = f"volume claim {name}"
    try:
        claim = kubernetes.get(f"{kubernetes.path('persistentvolumeclaims')}/{name}")
    except LookupError:
        remedy = "Create it (pipelines/README.md, step 3), or set checkpoints: null in the cluster file"
        return Finding(what, "error", f"missing in namespace {kubernetes.namespace}. {remedy}")
    phase, modes = claim["status"].get("phase"), claim["spec"].get("accessModes") or []
    many = "ReadWriteMany" in modes
    if several and not many:
        remedy = "Name a claim that is ReadWriteMany in checkpoints, or set nodes: 1"
        return Finding(what, "error", f"{', '.join(modes)}: the nodes of {' and '.join(several)} share it. {remedy}")
    text = f"{phase}, {', '.join(modes)}" + ("" if many else ": pods that train at once must share a node")
    if phase == "Bound":
        return Finding(what, "ok", text)
    if phase == "Pending" and _binds_late(kubernetes, claim["spec"].get("storageClassName")):
        return Finding(what, "ok", f"{text}; bound with the first pod that uses it")
    remedy = f"See why: kubectl -n {kubernetes.namespace} describe pvc {name}"
    return Finding(what, "error", f"{phase}, not Bound. {remedy}")


def _runtime(kubernetes: Kubernetes, name: str) -> Finding:
    """Looks for Kubeflow Trainer's runtime of the namespace, or else of the cluster."""
    what = f"runtime {name}"
    for path in (kubernetes.path("trainingruntimes", TRAINER), f"/{TRAINER}/clustertrainingruntimes"):
        try:
            kubernetes.get(f"{path}/{name}")
            return Finding(what, "ok", "exists")
        except LookupError:
            continue
    remedy = "Install Kubeflow Trainer (pipelines/README.md, Several nodes), correct training_runtime, or set nodes: 1"
    return Finding(what, "error", f"neither namespace {kubernetes.namespace} nor the cluster has it. {remedy}")


def _binds_late(kubernetes: Kubernetes, storage_class: str | None) -> bool:
    if not storage_class:
        return False
    try:
        found = kubernetes.get(f"/apis/storage.k8s.io/v1/storageclasses/{storage_class}")
    except (ConcordError, LookupError):
        return False
    return bool(found.get("volumeBindingMode") == "WaitForFirstConsumer")


def _account(kubernetes: Kubernetes, cluster: Cluster) -> Finding:
    what = f"service account {cluster.service_account}"
    try:
        kubernetes.get(f"{kubernetes.path('serviceaccounts')}/{cluster.service_account}")
    except LookupError:
        remedy = "Create it, or set service_account: null in the cluster file"
        return Finding(what, "error", f"missing in namespace {kubernetes.namespace}. {remedy}")
    return Finding(what, "ok", "exists")


def _launcher(kubernetes: Kubernetes, cluster: Cluster) -> Finding:
    what = "pipeline root"
    try:
        root, provider = pipeline_root(kubernetes, cluster)
    except ValueError as error:
        return Finding(what, "error", str(error))
    if not root.startswith("s3://"):
        return Finding(what, "ok", root)
    if not provider:
        remedy = f"Add its endpoint and key to providers of config map {LAUNCHER} (pipelines/README.md, step 4)"
        return Finding(what, "error", f"{root}, and the launcher has no endpoint and key for s3. {remedy}")
    reference = (provider.get("credentials") or {}).get("secretRef") or {}
    if name := reference.get("secretName"):
        keys = [str(reference[key]) for key in ("accessKeyKey", "secretKeyKey") if reference.get(key)]
        secret = _secret(kubernetes, name, keys, False)
        if secret.state == "error":
            return Finding(what, "error", f"{root}: the launcher's secret {name}: {secret.text}")
    return Finding(what, "ok", f"{root} at {provider.get('endpoint') or 'AWS'}")


def _right(kubernetes: Kubernetes, verb: str, resource: str, group: str) -> Finding:
    what = f"right to {verb} {resource}"
    if kubernetes.may(verb, resource, group):
        return Finding(what, "ok", f"in namespace {kubernetes.namespace}")
    remedy = "Ask for a role with it; without, submit --wait cannot say why a step waits or failed"
    return Finding(what, "error", f"missing in namespace {kubernetes.namespace}. {remedy}")


def _node(step: str, pod: Pod, nodes: list[Any]) -> Finding:
    what = f"node for {step}"
    lacking = {node["metadata"]["name"]: list(_lacks(node, pod)) for node in nodes}
    fitting = [name for name, lacks in lacking.items() if not lacks]
    accelerator = f", {pod.accelerator.count} {pod.accelerator.type}" if pod.accelerator else ""
    asked = f"{pod.cpu:g} cores, {pod.memory}{accelerator}"
    if fitting:
        return Finding(what, "ok", f"{asked}: {len(fitting)} of {len(nodes)} nodes")
    nearest = min(lacking, key=lambda name: len(lacking[name]), default=None)
    reason = f"{nearest} {', '.join(lacking[nearest])}" if nearest else "there is no node"
    remedy = f"Change steps.{step} in the cluster file, or add a node, unless an autoscaler does"
    return Finding(what, "error", f"{asked}: no node has this; {reason}. {remedy}")


def _lacks(node: Any, pod: Pod) -> Iterator[str]:
    """Yields why the pod cannot run on the node, even if nothing else ran there."""
    from kubernetes.utils.quantity import parse_quantity

    has, labels, spec = node["status"].get("allocatable") or {}, node["metadata"].get("labels") or {}, node["spec"]
    asked = {"cpu": f"{pod.cpu:g}", "memory": pod.memory}
    if pod.accelerator:
        asked[pod.accelerator.type] = str(pod.accelerator.count)
    for resource, amount in asked.items():
        if parse_quantity(has.get(resource, "0")) < parse_quantity(amount):
            yield f"has {has.get(resource, 'no')} {resource}"
    for label, value in pod.node_selector.items():
        if labels.get(label) != value:
            yield f"has no label {label}={value}"
    for taint in spec.get("taints") or []:
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerates(each, taint) for each in pod.tolerations):
            yield f"has the taint {taint['key']}"
    if spec.get("unschedulable"):
        yield "is cordoned"


def _tolerates(toleration: Any, taint: Any) -> bool:
    return (
        toleration.key in (None, taint["key"])
        and toleration.effect in (None, taint["effect"])
        and (toleration.operator == "Exists" or toleration.value == (taint.get("value") or ""))
    )
