"""Kubernetes' API: of the cluster of this pod, or else of kubectl's current context."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ConcordError, RetryableError
from components.shared.io.secrets import masked
from components.shared.io.transient import BUSY

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

DEFAULT_NAMESPACE = "kubeflow"
TIMEOUT = 10  # seconds per request
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # in a pod


class ForbiddenError(ConcordError):
    """These credentials may not do this."""


@dataclass(frozen=True)
class Kubernetes:
    """The API of a cluster.

    Attributes:
        name: the cluster, for messages.
        namespace: the namespace of the runs.
        api: the client; its credentials are kubectl's or the pod's.
    """

    name: str
    namespace: str
    api: "ApiClient"

    def get(self, path: str, **query: str) -> Any:
        """Returns the JSON at a path of the API.

        Raises:
            ConcordError: the cluster refuses (`ForbiddenError`), or cannot be reached now (`RetryableError`).
            LookupError: there is no such object.
        """
        return json.loads(self._request("GET", path, query, None))

    def text(self, path: str, **query: str) -> str:
        """Returns the text at a path of the API, such as a log; raises as `get` does."""
        return self._request("GET", path, query, None).decode("utf-8", "replace")

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """Yields the lines of a text as they come, such as those of a log with `follow="true"`; raises as `get`."""
        with _kubernetes_errors(self.name, f"read {path}"):
            rest = ""
            for part in self._call("GET", path, query, None, None).stream():
                *lines, rest = (rest + part.decode("utf-8", "replace")).split("\n")
                yield from lines
            if rest:
                yield rest

    def create(self, path: str, content: Any) -> Any:
        """Creates an object below a path of the API and returns it as the server completed it; raises as `get`."""
        return json.loads(self._request("POST", path, {}, content))

    def delete(self, path: str) -> None:
        """Deletes an object, and what belongs to it in the background; raises as `get`."""
        self._request("DELETE", path, {"propagationPolicy": "Background"}, None)

    def listed(self, kind: str, group: str = "api/v1", **query: str) -> list[Any]:
        """Returns the objects of a kind in the namespace: `listed("pods", labelSelector="a=b")`; raises as `get`."""
        return list(self.get(self.path(kind, group), **query).get("items") or [])

    def path(self, kind: str, group: str = "api/v1") -> str:
        """Returns the path of a kind of object in the namespace."""
        return f"/{group}/namespaces/{self.namespace}/{kind}"

    def may(self, verb: str, resource: str, group: str = "") -> bool:
        """Whether these credentials may do this in the namespace, to `pods` or `pods/log`. Asking stores nothing."""
        resource, _, part = resource.partition("/")
        attributes = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource}
        if part:
            attributes["subresource"] = part
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = self._request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {}, review)
        return bool(json.loads(answer)["status"]["allowed"])

    def _request(self, method: str, path: str, query: dict[str, str], body: Any) -> bytes:
        with _kubernetes_errors(self.name, f"{_DOES[method]} {path}"):
            return bytes(self._call(method, path, query, body, TIMEOUT).data)

    def _call(self, method: str, path: str, query: dict[str, str], body: Any, timeout: float | None) -> Any:
        from kubernetes.client import ApiException

        try:
            return self.api.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json, text/plain, */*", "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=timeout,
            )
        except ApiException as error:
            if error.status == 404:
                raise LookupError(f"{self.name} has no {path}") from None
            if error.status == 403:
                raise ForbiddenError(
                    f"{self.name}: may not {_DOES[method]} {path}: {masked(_message(error.body))}"
                ) from None
            raise


_DOES = {"GET": "read", "POST": "create below", "DELETE": "delete"}


def connect_kubernetes(namespace: str | None) -> Kubernetes:
    """Returns the cluster of this pod, or else of kubectl's current context. Nothing is asked yet.

    Args:
        namespace: the namespace of the runs; None for Kubeflow's own.

    Raises:
        ConcordError: this is no pod, and kubectl has no context or its login fails.
    """
    from kubernetes import client, config

    configuration = client.Configuration()
    configuration.retries = False
    namespace = namespace or DEFAULT_NAMESPACE
    try:
        config.load_incluster_config(configuration)
        return Kubernetes("the cluster of this pod", namespace, client.ApiClient(configuration))
    except config.ConfigException:
        pass
    with _kubernetes_errors("kubectl", "read its context"):
        config.load_kube_config(client_configuration=configuration, persist_config=False)
        context = config.list_kube_config_contexts()[1]["name"]
    return Kubernetes(f"kubectl's context {context}", namespace, client.ApiClient(configuration))


@contextmanager
def _kubernetes_errors(cluster: str, action: str) -> Iterator[None]:
    """Turns errors of the client and of the network into a one-line ConcordError without secrets."""
    import urllib3
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException

    kind = ConcordError
    try:
        yield
    except ApiException as error:
        reason = f"{error.status} {error.reason}: {_message(error.body)}"
        if error.status in BUSY or error.status >= 500:
            kind = RetryableError
    except (urllib3.exceptions.HTTPError, OSError) as error:
        reason, kind = str(error).strip().partition("\n")[0], RetryableError
    except (ConfigException, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
    else:
        return
    raise kind(f"{cluster}: could not {action}: {masked(reason)[:300]}") from None


def _message(body: Any) -> str:
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(body or "")[:200]
