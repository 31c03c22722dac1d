"""Configures the pipeline's tasks on Kubernetes from the settings of the cluster."""

import json

from kfp import dsl, kubernetes

from components.errors import ConcordError
from components.launcher import SECTION
from components.settings import Launcher, Settings
from components.shared.kubeflow.names import RUN_ID, STATE, TRAIN_JOB, TRIES
from components.shared.kubeflow.tries import Tries
from components.shared.s3.cache import LIMIT_VARIABLE
from components.steps import STEPS, Step
from pipelines.cluster_settings import Cluster, Pod, quantity_bytes
from pipelines.train_jobs import train_job

# The label that the API server sets. A placeholder on the command line would not be replaced, and would become an input
# of the step.
RUN_LABEL = "metadata.labels['pipeline/runid']"
SCRATCH = "/tmp"  # the root file system may be read-only
SHARED_MEMORY = "/dev/shm"
HEAD_CPU, HEAD_MEMORY = "1", "2Gi"  # of a step's pod whose training runs elsewhere: it copies, hashes and waits
CACHE_SHARE = 0.9  # share of SCRATCH that fetched data may fill


def configure_task(
    task: dsl.PipelineTask, settings: Settings, cluster: Cluster, image: str, step: str | None = None
) -> None:
    """Sets image, resources, volumes, secrets, retries and limits of a task.

    Args:
        step: whose pod the task gets; None: the step of the task's name.

    Raises:
        ConcordError: the launcher would start more ranks than the step has accelerators.
    """
    name = step or task.name
    task.set_container_image(image)
    nodes = cluster.nodes(name)
    if nodes > 1:
        task.set_env_variable(TRAIN_JOB, json.dumps(train_job(name, settings.launcher, cluster, image)))
    _resources(task, STEPS[name], settings.launcher, cluster, head=nodes > 1)
    _volumes(task, STEPS[name], cluster)
    _environment(task, STEPS[name], cluster)
    pod, backoff = cluster.pod(name), cluster.backoff
    tries = Tries(pod.retries, backoff.seconds, backoff.factor, pod.timeout_minutes)
    task.set_env_variable(TRIES, tries.to_json())
    task.set_retry(pod.retries, f"{backoff.seconds}s", backoff.factor, f"{cluster.retry_window(name)}s")
    kubernetes.set_timeout(task, pod.timeout_minutes * 60)
    if nodes == 1:
        _placement(task, pod)
    kubernetes.set_image_pull_policy(task, cluster.pull_policy)
    if cluster.pull_secrets:
        kubernetes.set_image_pull_secrets(task, cluster.pull_secrets)
    kubernetes.set_security_context(task, cluster.user, cluster.group, run_as_non_root=True)


def pipeline_config(cluster: Cluster) -> dsl.PipelineConfig:
    """Returns the limits of the whole run.

    All three times to live, because Argo prefers those after success and after failure, which Kubeflow's defaults set.
    """
    ttl = _seconds(cluster.ttl_hours)
    return dsl.PipelineConfig(
        ttl_seconds_after_finished=ttl,
        ttl_seconds_after_success=ttl,
        ttl_seconds_after_failure=ttl,
        active_deadline_seconds=_seconds(cluster.deadline_hours),
    )


def _seconds(hours: int | None) -> int | None:
    return None if hours is None else hours * 3600


def _placement(task: dsl.PipelineTask, pod: Pod) -> None:
    for label, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for taint in pod.tolerations:
        kubernetes.add_toleration(task, taint.key, taint.operator, taint.value, taint.effect)


def _resources(task: dsl.PipelineTask, step: Step, launcher: Launcher, cluster: Cluster, head: bool) -> None:
    """Sets cores, memory and accelerators: the step's own, or what the head of a TrainJob needs."""
    pod = cluster.pod(step.name)
    ranks = launcher.num_processes if step.parallel else 1
    if pod.accelerator is not None:
        if ranks > pod.accelerator.count:
            raise ConcordError(
                f"steps.{step.name}.accelerator.count in the cluster file is {pod.accelerator.count}, and "
                f"launcher.num_processes starts {ranks} ranks, one for each accelerator. Set both to the same number."
            )
        if not head:
            task.set_accelerator_type(pod.accelerator.type).set_accelerator_limit(pod.accelerator.count)
    cpu, memory = (HEAD_CPU, HEAD_MEMORY) if head else (f"{pod.cpu:g}", pod.memory)
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    # Without this, libraries start a thread for every core of the node, not of the pod.
    task.set_env_variable("OMP_NUM_THREADS", str(max(int(float(cpu) / ranks), 1)))
    if step.parallel:
        task.set_env_variable(SECTION, json.dumps(launcher.model_dump(mode="json")))


def _volumes(task: dsl.PipelineTask, step: Step, cluster: Cluster) -> None:
    kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit=cluster.scratch)
    shared_memory = cluster.pod(step.name).shared_memory
    if shared_memory is not None:
        kubernetes.empty_dir_mount(task, "shared-memory", SHARED_MEMORY, medium="Memory", size_limit=shared_memory)
    if not step.resumes:
        return
    if cluster.checkpoints is not None:
        kubernetes.mount_pvc(task, cluster.checkpoints, STATE)
    else:
        kubernetes.empty_dir_mount(task, "checkpoints", STATE)


def _environment(task: dsl.PipelineTask, step: Step, cluster: Cluster) -> None:
    """Sets environment variables. Secrets are referenced by name, so the pipeline contains no value."""
    kubernetes.use_field_path_as_env(task, RUN_ID, RUN_LABEL)
    if "data" in step.inputs and "CONCORD_CACHE" not in cluster.environment:
        # The image's cache is in SCRATCH, and Kubernetes evicts a pod that exceeds the volume's size limit.
        task.set_env_variable(LIMIT_VARIABLE, str(int(CACHE_SHARE * quantity_bytes(cluster.scratch))))
    for name, value in cluster.environment.items():
        task.set_env_variable(name, value)
    for secret in cluster.secrets:
        # One call per variable: kfp maps key -> variable, and two variables may use the same key.
        for name, key in secret.env.items():
            kubernetes.use_secret_as_env(task, secret.name, {key: name}, secret.optional)
