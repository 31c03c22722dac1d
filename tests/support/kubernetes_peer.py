"""Kubernetes' API in a recorded state, for tests/support/kubeflow_peer.py, and a kubeconfig that names a server.

The states in tests/data/cluster were recorded on a real cluster: Kubeflow's run, the run's pods and their events,
Argo's workflow, and what Kubeflow's address of a pod's log answered.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.support.http_peer import Request

FOLDER = Path(__file__).parents[1] / "data" / "cluster"
NAMESPACE = "/namespaces/kubeflow/"
LOGS = "/apis/v1alpha1/runs/"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def recorded(name: str) -> Any:
    """Returns a recorded state: `run`, `pods`, `events`, `logs` and perhaps `workflow`."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def cluster_answer(state: Any, request: Request) -> tuple[int, Any] | None:
    """Returns the answer to a request for pods, events, workflows or logs; None for other requests."""
    path = request.path
    if path.startswith(LOGS):
        run, _, pod = path.removeprefix(LOGS).removesuffix("/log").partition("/nodes/")
        text = state["logs"].get(pod, '{"error_message": "no such pod"}') if run == state["run"]["run_id"] else "{}"
        return (404, json.loads(text)) if text.startswith("{") else (200, text)
    if path.startswith(f"/api/v1{NAMESPACE}pods/") and path.endswith("/log"):
        pod = path.split("/")[-2]
        if text := state.get("kubernetes_logs", {}).get(pod):
            return 200, text
        return 404, {"kind": "Status", "message": f'pods "{pod}" not found', "code": 404}
    if not path.startswith(("/api/v1/namespaces/", "/apis/argoproj.io/v1alpha1/namespaces/")):
        return None
    objects = {"pods": state["pods"], "events": state["events"], "workflows": [state.get("workflow")]}
    found = [
        each for each in objects[path.rpartition("/")[2]] if each and NAMESPACE in path and _selected(each, request)
    ]
    return 200, {"kind": "List", "apiVersion": "v1", "items": found}


def _selected(each: Any, request: Request) -> bool:
    for selector in request.query.get("labelSelector", []):
        label, _, value = selector.partition("=")
        if each["metadata"]["labels"].get(label) != value:
            return False
    fields = request.query.get("fieldSelector", [])
    return all(f"involvedObject.name={each['involvedObject']['name']}" == selector for selector in fields)


def access_review(body: Any, rights: set[str]) -> Any:
    """Returns a SelfSubjectAccessReview with its answer."""
    asked = body["spec"]["resourceAttributes"]
    resource = "/".join(part for part in (asked["resource"], asked.get("subresource")) if part)
    return {**body, "status": {"allowed": f"{asked['verb']} {resource}" in rights}}


def kubeconfig(folder: Path, host: str, token: str = "") -> Path:
    """Writes a kubeconfig with one context, `here`, that names a server; returns its path."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": host}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "users": [{"name": "me", "user": {"token": token} if token else {}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
