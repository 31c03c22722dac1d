"""A fake Kubeflow Pipelines server with the formats of the v2beta1 API, since a real Kubeflow cannot run here.

It records every request. A test sets the sequence of states that it answers for a watched run, or recorded states of a
real cluster, whose pods it then answers for as well.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.http_peer import Request, listening
from tests.support.kubernetes_peer import REVIEWS, access_review, cluster_answer

API = "/apis/v2beta1"
RUN = "5f0c1d6e-0000-4000-8000-000000000001"
SCHEDULE = "5f0c1d6e-0000-4000-8000-000000000002"
# The path under which Kubernetes' API proxies a request; the client adds a slash.
PROXY = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/"
SILENCE = "silence"
EXPERIMENT = "5f0c1d6e-0000-4000-8000-000000000003"


@dataclass
class FakeServer:
    """The requests that the server received, and what it answers.

    Attributes:
        host: the server's address.
        requests: every request so far.
        states: the run's states, one per answer: the run's own state and those of its tasks. The last one is repeated.
            A number is answered as an HTTP error; for `SILENCE` there is no answer for a minute.
        experiments: names of existing experiments.
        token: required in the Authorization header, otherwise the answer is 401; empty: no login.
        refuse: path -> status and message of an error.
        recorded: states of a real cluster (`kubernetes_peer.recorded`), one per answer about the run, in place of
            `states`. The last one is repeated; the cluster's pods, events and logs are those of the last answer.
        objects: path in Kubernetes' API -> the object there.
        version: of Kubeflow Pipelines, as /healthz tells it; empty: it does not.
        rights: what SelfSubjectAccessReviews allow: verb and resource, `get pods/log`.
    """

    host: str = ""
    requests: list[Request] = field(default_factory=list)
    states: list[tuple[str, dict[str, str]] | int | str] = field(default_factory=list)
    experiments: list[str] = field(default_factory=list)
    token: str = ""
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    recorded: list[Any] = field(default_factory=list)
    objects: dict[str, Any] = field(default_factory=dict)
    version: str = "2.17.0"
    rights: set[str] = field(default_factory=set)

    def one(self, method: str, path: str) -> Request:
        """Returns the only request with this method and path."""
        full_path = path if path.startswith(PROXY) else API + path
        matching = [request for request in self.requests if (request.method, request.path) == (method, full_path)]
        assert len(matching) == 1, [(request.method, request.path) for request in self.requests]
        return matching[0]

    def answer(self, request: Request) -> tuple[int, Any]:
        """Returns the status and the content of the answer."""
        path = request.path.removeprefix(PROXY).removeprefix(API)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"message": f"no such token: {request.headers.get('authorization')}"}
        if path in self.refuse:
            status, message = self.refuse[path]
            return status, {"error": message, "code": 3, "message": message, "details": []}
        if (request.method, path) == ("GET", "/healthz"):
            return 200, {"multi_user": False, **({"tag_name": self.version} if self.version else {})}
        if request.method == "GET" and path in self.objects:
            return 200, self.objects[path]
        if (request.method, path) == ("POST", REVIEWS):
            return 201, access_review(request.body, self.rights)
        if (request.method, path) == ("GET", "/experiments"):
            predicate = json.loads(request.query["filter"][0])["predicates"][0]
            name = predicate.get("stringValue", predicate.get("string_value"))
            experiments = [{"experiment_id": EXPERIMENT, "display_name": name}] if name in self.experiments else []
            return 200, {"experiments": experiments, "total_size": len(experiments)} if experiments else {}
        if (request.method, path) == ("POST", "/experiments"):
            return 200, {**request.body, "experiment_id": EXPERIMENT}
        if (request.method, path) == ("POST", "/runs"):
            run = self.recorded[0]["run"]["run_id"] if self.recorded else RUN
            return 200, {**request.body, "run_id": run, "state": "PENDING"}
        if (request.method, path) == ("POST", "/recurringruns"):
            return 200, {**request.body, "recurring_run_id": SCHEDULE, "status": "ENABLED"}
        if self.recorded:
            return self._recorded(request, path)
        if (request.method, path) == ("GET", f"/runs/{RUN}"):
            return self._run()
        return 404, {"message": f"{request.method} {path} is unknown to this server"}

    def _recorded(self, request: Request, path: str) -> tuple[int, Any]:
        if (request.method, path) == ("GET", f"/runs/{self.recorded[0]['run']['run_id']}"):
            if len(self.recorded) > 1 and self.recorded[0].pop("shown", False):
                self.recorded.pop(0)
            self.recorded[0]["shown"] = True
            return 200, self.recorded[0]["run"]
        if request.method == "GET" and (answer := cluster_answer(self.recorded[0], request)):
            return answer
        return 404, {"message": f"{request.method} {path} is unknown to this server"}

    def _run(self) -> tuple[int, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, int):
            return state, {"message": "unavailable"}
        if isinstance(state, str):
            time.sleep(60)
            return 500, {}
        run_state, task_states = state
        tasks: list[dict[str, Any]] = [
            {"run_id": RUN, "display_name": name, "state": state, "child_tasks": [{"pod_name": f"pod-{name}"}]}
            for name, state in {
                "root": run_state,
                **{f"{name}-driver": "SUCCEEDED" for name in task_states},
                **task_states,
            }.items()
        ]
        for task in tasks:
            if task["state"] == "FAILED" and task["display_name"] != "root":
                task["error"] = {"code": 13, "message": f"{task['display_name']} exited 3"}
        return 200, {"run_id": RUN, "state": run_state, "run_details": {"task_details": tasks}}


@contextmanager
def serving(fake: FakeServer) -> Iterator[FakeServer]:
    """Serves on a free port of this machine, and sets `fake.host` to the address."""

    def answer(request: Request) -> tuple[int, Any]:
        fake.requests.append(request)
        return fake.answer(request)

    with listening(answer) as port:
        fake.host = f"http://127.0.0.1:{port}"
        yield fake
