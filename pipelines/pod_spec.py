"""Parts of a pod as Kubernetes has them, from the settings of the cluster; for objects that kfp does not make."""

from typing import Any

from pipelines.cluster_settings import Cluster, Pod


def resources(pod: Pod) -> dict[str, dict[str, str]]:
    """Returns cores, memory and accelerators of a container, as both requests and limits."""
    amounts = {"cpu": f"{pod.cpu:g}", "memory": pod.memory}
    if pod.accelerator is not None:
        amounts[pod.accelerator.type] = str(pod.accelerator.count)
    return {"requests": amounts, "limits": dict(amounts)}


def placement(cluster: Cluster, pod: Pod) -> dict[str, Any]:
    """Returns the keys of a pod's spec that choose its node, and that let it pull its image."""
    spec: dict[str, Any] = {}
    if cluster.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in cluster.pull_secrets]
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [taint.model_dump(exclude_none=True) for taint in pod.tolerations]
    return spec


def environment(cluster: Cluster, cores: int) -> list[dict[str, Any]]:
    """Returns the variables that the steps' pods have. Secrets are referenced by name, so there is no value of one."""
    variables = {"OMP_NUM_THREADS": str(max(cores, 1)), **cluster.environment}
    found: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in variables.items()]
    for secret in cluster.secrets:
        for name, key in secret.env.items():
            reference: dict[str, Any] = {"name": secret.name, "key": key}
            if secret.optional:
                reference["optional"] = True
            found.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return found


def security_context(cluster: Cluster) -> dict[str, Any]:
    """Returns the context of a container without root, capabilities and a root file system that can be written to."""
    context: dict[str, Any] = {
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if cluster.user is not None:
        context["runAsUser"] = cluster.user
    if cluster.group is not None:
        context["runAsGroup"] = cluster.group
    return context
