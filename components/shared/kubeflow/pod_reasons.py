"""Why a pod waits or has failed, by its own status."""

from collections.abc import Iterator, Mapping
from typing import Any

from components.steps import STEPS

# States of a container that waits for others; the reason is in the pod's events.
_ON_ITS_WAY = ("ContainerCreating", "PodInitializing")


def pod_reasons(step: str, pod: Any) -> Iterator[str]:
    """Yields what the pod's own status says of why it waits or has failed."""
    status = pod["status"]
    if status.get("reason") or status.get("message"):  # evicted, past its deadline, ...
        yield sentence(status)
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield sentence(condition)
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting, ended = container["state"].get("waiting"), container["state"].get("terminated")
        if waiting and waiting.get("reason") not in (None, *_ON_ITS_WAY):
            yield sentence(waiting)
        elif ended and ended.get("reason") == "OOMKilled":
            yield _out_of_memory(step, pod, container["name"])
        elif ended and ended.get("exitCode"):
            yield f"{container['name']} exited with {ended['exitCode']}" + (
                f": {ended['message']}" if ended.get("message") else ""
            )


def _out_of_memory(step: str, pod: Any, container: str) -> str:
    limits = [c["resources"].get("limits") or {} for c in pod["spec"]["containers"] if c["name"] == container]
    limit = (limits or [{}])[0].get("memory")
    text = "out of memory (OOMKilled)" + (f", the limit is {limit}" if limit else "")
    return f"{text}. Raise steps.{step}.memory in the cluster file" if step in STEPS else text


def sentence(reported: Mapping[str, Any]) -> str:
    """Returns reason and message of a state, an event or a condition."""
    return ": ".join(str(reported[key]) for key in ("reason", "message") if reported.get(key))
