"""Why a step waits or has failed: what Kubernetes and Argo report about the pods of a run, and the last log lines."""

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from components.errors import ConcordError
from components.shared.io.secrets import masked
from components.shared.kubeflow.kubernetes_api import Kubernetes
from components.shared.kubeflow.pod_reasons import pod_reasons, sentence
from pipelines.run_state import executors

if TYPE_CHECKING:
    from kfp import Client

RUN_LABEL = "pipeline/runid"
NODE = "workflows.argoproj.io/node-name"
ARGO = "apis/argoproj.io/v1alpha1"
LINES = 20  # of a failed step's log
_LAUNCHER_NEWS = re.compile(r"[IW]\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] ")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class RunPods:
    """The pods of one run. They are found by the run's label, in one namespace of one cluster."""

    def __init__(self, run_id: str, connect: Callable[[], Kubernetes]) -> None:
        """Connects to the cluster at the first question."""
        self._run_id, self._connect = run_id, connect

    @cached_property
    def _cluster(self) -> Kubernetes:
        return self._connect()

    def why(self, step: str) -> str:
        """Returns why the step's last attempt waits or has failed; empty if nothing is known.

        Raises:
            ConcordError: the cluster cannot be asked, or has no pod of the run.
        """
        pod = _last_of(step, self._pods())
        if pod is None or pod["status"].get("phase") == "Succeeded":
            reasons = self._argo_reasons(step)[-1:]
        else:
            reasons = list(dict.fromkeys(pod_reasons(step, pod))) or self._last_event(pod)
        return masked("; ".join(reasons))

    def log(self, client: "Client", run: Any, step: str) -> list[str]:
        """Returns the last lines of the step's log, without what Kubeflow's launcher reports of its own work.

        Raises:
            ConcordError: neither Kubeflow nor Kubernetes has the log.
        """
        try:
            pod = _last_of(step, self._pods())
            names = [pod["metadata"]["name"]] if pod else []
        except ConcordError:
            names = _pod_names(run, step)
        for name in names:
            if (text := _kubeflow_log(client, self._run_id, name)) is not None:
                return last_lines(text)
        if not names:
            raise ConcordError(f"{step}: no pod, and so no log")
        try:
            path = f"{self._cluster.path('pods')}/{names[0]}/log"
            return last_lines(self._cluster.text(path, container="main", tailLines="200"))
        except LookupError:
            raise ConcordError(f"pod {names[0]}: neither Kubeflow nor Kubernetes has its log") from None

    def _own(self, kind: str, group: str) -> list[Any]:
        """Returns the objects that have the run's label."""
        listed = self._cluster.listed(kind, group, labelSelector=f"{RUN_LABEL}={self._run_id}")
        return [each for each in listed if (each["metadata"].get("labels") or {}).get(RUN_LABEL) == self._run_id]

    def _pods(self) -> list[Any]:
        pods = self._own("pods", "api/v1")
        if not pods:
            raise ConcordError(
                f"{self._cluster.name} has no pod of run {self._run_id} in namespace {self._cluster.namespace}. Is it "
                "the run's cluster? --namespace sets the namespace, and `kubectl config use-context` the cluster."
            )
        return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))

    def _last_event(self, pod: Any) -> list[str]:
        """Returns the pod's last event, if it has one: a warning where there are any."""
        events = self._cluster.listed("events", fieldSelector=f"involvedObject.name={pod['metadata']['name']}")
        reported = sorted(
            (event for event in events if event.get("message")),
            key=lambda each: (each.get("type") == "Warning", each.get("lastTimestamp") or each.get("eventTime") or ""),
        )
        return [sentence(event) for event in reported[-1:]]

    def _argo_reasons(self, step: str) -> list[str]:
        """Returns what Argo reports of the pods that it could not make, the last attempt's last."""
        found = []
        for workflow in self._own("workflows", ARGO):
            nodes = (workflow.get("status") or {}).get("nodes") or {}
            for node in nodes.values() if isinstance(nodes, Mapping) else nodes:
                owner = step_of_node(node["name"]) if "name" in node else step
                if node.get("type") == "Pod" and owner == step and node.get("message"):
                    found.append((node.get("displayName", ""), f"Argo: {node['message']}"))
        return [message for _, message in sorted(found)]


def step_of_node(name: str) -> str:
    """Returns the step of an Argo node: sft for `run(0).root(0).sft(0).executor(0)` and for `run(0).sft-driver(0)`."""
    parts = [re.sub(r"\(\d+\)$", "", part) for part in name.split(".")]
    return parts[-2] if parts[-1] == "executor" and len(parts) > 1 else parts[-1].removesuffix("-driver")


def last_lines(text: str) -> list[str]:
    """Returns the last LINES lines of a log that a person can use; launchers' news and control characters are not."""
    lines = [_CONTROL.sub("", line).rstrip() for line in re.split(r"[\r\n]+", text)]
    kept = [line for line in lines if line and not _LAUNCHER_NEWS.match(line)]
    return [masked(line) for line in kept[-LINES:]]


def _last_of(step: str, pods: list[Any]) -> Any | None:
    of_step = [pod for pod in pods if step_of_node(pod["metadata"].get("annotations", {}).get(NODE, "")) == step]
    return of_step[-1] if of_step else None


def _pod_names(run: Any, step: str) -> list[str]:
    """Returns what Argo may have called the last pod of a step, from the run alone: with retries, or without."""
    children = [child.pod_name for task in executors(run, step) for child in task.child_tasks or [] if child.pod_name]
    if not children:
        return []
    workflow, _, number = children[-1].rpartition("-")
    return [f"{workflow}-{template}-{number}" for template in ("retry-system-container-impl", "system-container-impl")]


def _kubeflow_log(client: "Client", run_id: str, pod: str) -> str | None:
    """Returns the pod's log from Kubeflow's API; None where it has none, as while the pod runs."""
    import kfp_server_api
    import urllib3

    api = client._run_api.api_client
    try:
        answer = api.call_api(
            "/apis/v1alpha1/runs/{run}/nodes/{pod}/log",
            "GET",
            {"run": run_id, "pod": pod},
            auth_settings=["Bearer"],
            _preload_content=False,
            _return_http_data_only=True,
        )
    except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError, OSError):
        return None
    text = bytes(answer.data).decode("utf-8", "replace")
    return None if text.startswith('{"error_message"') else text
