"""The TrainJob of a training: what is sent, and what the cluster's refusals become."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConcordError, RetryableError
from components.shared.kubeflow import train_job
from components.shared.kubeflow.kubernetes_api import connect_kubernetes
from components.shared.kubeflow.train_job import TrainJob, ended
from tests.support.kubernetes_peer import kubeconfig
from tests.support.trainer_peer import NO_PATH, Trainer, serving

TEMPLATE = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "spec": {"runtimeRef": {"name": "torch-distributed"}, "trainer": {"numNodes": 2, "numProcPerNode": 1}},
}
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def sleeps(trainer: Any, variables: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(SLEEP)


def ignores_sigterm(trainer: Any, variables: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(SLEEP, preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    with serving(Trainer(tmp_path, sleeps)) as running:
        config = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        monkeypatch.setattr(config, str(kubeconfig(tmp_path, running.host)))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield running


@pytest.fixture
def job(trainer: Trainer) -> TrainJob:
    return TrainJob(connect_kubernetes(None), "concord-sft-1")


def test_it_is_made_once_and_has_its_label(trainer: Trainer, job: TrainJob) -> None:
    assert job.get() is None
    job.create(TEMPLATE)
    job.create(TEMPLATE)  # as another head does that has looked at the same moment
    (made,) = trainer.made
    assert made["metadata"] == {
        "name": "concord-sft-1", "namespace": "kubeflow", "labels": {"concord.training": "concord-sft-1"}
    }  # fmt: skip
    assert ended(job.get()) is None
    assert job.first_pod() == "concord-sft-1-node-0-0-00000"


def test_it_is_gone_when_its_pods_have_ended(trainer: Trainer, job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job.create(TEMPLATE)
    job.delete()
    assert [pod.phase() for pod in trainer.pods["concord-sft-1"]] == ["Failed", "Failed"]
    monkeypatch.setattr(train_job, "END_SECONDS", 1.0)
    monkeypatch.setattr(train_job, "POLL_SECONDS", 0.1)
    trainer.launch = ignores_sigterm
    job.create(TEMPLATE)
    with pytest.raises(RetryableError, match="was deleted, and its pods have not ended in 1 s"):
        job.delete()


@pytest.mark.parametrize("kind", ["Complete", "Failed"])
def test_its_condition_says_how_it_ended(trainer: Trainer, job: TrainJob, kind: str) -> None:
    job.create(TEMPLATE)
    trainer.condition("concord-sft-1", kind, "jobset has ended")
    assert ended(job.get()) == (kind, "jobset has ended")


def asks(job: TrainJob) -> None:
    job.get()
    job.create(TEMPLATE)
    job.first_pod()


CREATE = 'trainjobs.trainer.kubeflow.org is forbidden: User "me" cannot create resource "trainjobs"'
RIGHTS = "The service account of the step's pod needs the rights in pipelines/train-jobs.yaml"


@pytest.mark.parametrize(
    ("refuse", "expected", "kind"),
    [
        (("POST trainjobs", 404, NO_PATH), "has no TrainJobs, and nodes in the cluster file needs them", ConcordError),
        (("POST trainjobs", 403, CREATE), f"{CREATE}. {RIGHTS}", ConcordError),
        (("GET trainjobs", 403, "trainjobs is forbidden"), f"trainjobs is forbidden. {RIGHTS}", ConcordError),
        (("GET pods", 403, "pods is forbidden"), f"pods is forbidden. {RIGHTS}", ConcordError),
        (
            ("POST trainjobs", 403, 'admission webhook "validator" denied the request: no runtime torch-distributed'),
            'admission webhook "validator" denied the request: no runtime torch-distributed',
            ConcordError,
        ),
        (("POST trainjobs", 422, "spec.trainer.numNodes: Invalid value"), "numNodes: Invalid value", ConcordError),
        (("POST trainjobs", 503, "the server is busy"), "503 Service Unavailable: the server is busy", RetryableError),
        (("GET trainjobs", 429, "slow down"), "slow down", RetryableError),
    ],
)
def test_a_refusal_is_an_error_with_its_remedy_and_a_busy_server_a_reason_to_try_again(
    trainer: Trainer, job: TrainJob, refuse: tuple[str, int, Any], expected: str, kind: type[ConcordError]
) -> None:
    what, status, message = refuse
    trainer.refuse = {what: (status, message)}
    with pytest.raises(ConcordError) as raised:
        asks(job)
    assert type(raised.value) is kind
    assert expected in str(raised.value)
