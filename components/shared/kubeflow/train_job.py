"""The TrainJob of one training in Kubernetes' API: made, watched and deleted by the step's pod.

Kubeflow's SDK is not used: it passes environment variables as values only, and here they refer to secrets. (Trainer
accepts such references in `trainer.env` alone; it refuses them in the patches, where the SDK would take them.)
"""

import time
from dataclasses import dataclass
from typing import Any

from components.errors import ConcordError, RetryableError
from components.shared.kubeflow.kubernetes_api import ForbiddenError, Kubernetes

API = "apis/trainer.kubeflow.org/v1alpha1"
TRAINING = "concord.training"  # label: step and name of the training
NODE = "node"  # Trainer's name of the job, and of the container, that trains
POLL_SECONDS = 2.0
END_SECONDS = 300.0  # in which pods end after their TrainJob was deleted; they get 30 to write a checkpoint
_JOB_OF_POD, _JOB_INDEX = "jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class TrainJob:
    """The only TrainJob of a training. Its name follows from the training's, so that two heads cannot make two.

    Attributes:
        kubernetes: with the namespace of this pod.
        name: of the TrainJob.
    """

    kubernetes: Kubernetes
    name: str

    def get(self) -> Any:
        """The object; None if there is none.

        Raises:
            ConcordError: the cluster refuses, or cannot be reached now (`RetryableError`).
        """
        try:
            return self.kubernetes.get(self._path)
        except LookupError:
            return None
        except ForbiddenError as error:
            raise _without_rights(error) from None

    def create(self, template: Any) -> None:
        """Makes it from a template, unless it is there.

        Raises:
            ConcordError: Trainer is not installed, or refuses the object; the cluster refuses or cannot be reached.
        """
        metadata = {"name": self.name, "namespace": self.kubernetes.namespace, "labels": {TRAINING: self.name}}
        try:
            self.kubernetes.create(self.kubernetes.path("trainjobs", API), {**template, "metadata": metadata})
        except LookupError:
            raise ConcordError(
                f"{self.kubernetes.name} has no TrainJobs, and nodes in the cluster file needs them. Install Kubeflow "
                "Trainer (pipelines/README.md, Several nodes), or set nodes: 1."
            ) from None
        except ForbiddenError as error:
            if "admission webhook" in str(error):
                raise ConcordError(str(error)) from None
            raise _without_rights(error) from None
        except ConcordError as error:
            if "409 " not in str(error):
                raise

    def delete(self) -> None:
        """Deletes it and waits until its pods have ended: two trainings must not write the same state.

        Raises:
            RetryableError: they have not ended, as on a lost node.
        """
        try:
            self.kubernetes.delete(self._path)
        except LookupError:
            pass
        except ForbiddenError as error:
            raise _without_rights(error) from None
        self.wait_until_gone()

    def wait_until_gone(self) -> None:
        """Waits until no pod of it is left; raises as `delete`."""
        end = time.monotonic() + END_SECONDS
        while self.get() is not None or any(not _has_ended(pod) for pod in self.pods()):
            if time.monotonic() > end:
                raise RetryableError(
                    f"TrainJob {self.name} was deleted, and its pods have not ended in {END_SECONDS:.0f} s. See: "
                    f"kubectl -n {self.kubernetes.namespace} get pods -l {_JOB_OF_POD}={self.name}"
                )
            time.sleep(POLL_SECONDS)

    def pods(self) -> list[Any]:
        """Its pods, the oldest first; raises as `get`."""
        try:
            found = self.kubernetes.listed("pods", labelSelector=f"{_JOB_OF_POD}={self.name}")
        except ForbiddenError as error:
            raise _without_rights(error) from None
        return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))

    def first_pod(self) -> str | None:
        """The name of the newest pod of node 0, where rank 0 runs, once its container has started."""
        for pod in reversed(self.pods()):
            first = pod["metadata"].get("labels", {}).get(_JOB_INDEX, "0") == "0"
            if first and pod["status"].get("phase") not in (None, "Pending"):
                return str(pod["metadata"]["name"])
        return None

    @property
    def _path(self) -> str:
        return f"{self.kubernetes.path('trainjobs', API)}/{self.name}"


def ended(job: Any) -> tuple[str, str] | None:
    """How a TrainJob ended: `Complete` or `Failed`, and the message; None if it has not."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return str(condition["type"]), str(condition.get("message") or condition.get("reason") or "")
    return None


def _has_ended(pod: Any) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _without_rights(error: ForbiddenError) -> ConcordError:
    return ConcordError(
        f"{error}. The service account of the step's pod needs the rights in pipelines/train-jobs.yaml: apply it."
    )
