"""Creates runs and schedules through the models of Kubeflow's API, since kfp's client cannot send `plugins_input`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.cluster_settings import Cluster

if TYPE_CHECKING:
    from kfp import Client

# Set in a step by Kubeflow's MLflow plugin. A pod in which a secret sets one of them too is invalid.
MLFLOW_VARIABLES = {"MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"}


def plugins_input(cluster: Cluster, experiment: str) -> dict[str, dict[str, Any]]:
    """Says what Kubeflow's MLflow plugin does for a run; a server without the plugin ignores it.

    Args:
        cluster: if it names the MLflow server, the steps open their runs themselves.
        experiment: the MLflow experiment in which the plugin opens a run for each run and task otherwise.
    """
    if MLFLOW_VARIABLES & cluster.variables():
        return {"mlflow": {"disabled": True}}
    return {"mlflow": {"experiment_name": experiment}}


def common_fields(
    package: Path, parameters: dict[str, str], cluster: Cluster, experiment: str, experiment_id: str, name: str
) -> dict[str, Any]:
    """Returns the fields of a run that are also those of a schedule.

    Args:
        package: the compiled pipeline; its caching options hold.
        parameters: input of the pipeline -> value.
        cluster: pipeline root and service account.
        experiment, experiment_id: name and Kubeflow's id of the experiment.
        name: of the run or schedule.
    """
    import kfp_server_api as api

    pipeline, platform = yaml.safe_load_all(package.read_text(encoding="utf-8"))
    return {
        "display_name": name,
        "experiment_id": experiment_id,
        "pipeline_spec": {"pipeline_spec": pipeline, "platform_spec": platform},
        "runtime_config": api.V2beta1RuntimeConfig(pipeline_root=cluster.pipeline_root, parameters=parameters),
        "service_account": cluster.service_account,
        "plugins_input": plugins_input(cluster, experiment),
    }


def create_run(client: "Client", fields: dict[str, Any]) -> str:
    """Creates a run; returns its id."""
    import kfp_server_api as api

    runs = api.RunServiceApi(client._run_api.api_client)
    return str(runs.run_service_create_run(api.V2beta1Run(**fields)).run_id)


def create_schedule(client: "Client", fields: dict[str, Any], cron: str, max_concurrency: int, catch_up: bool) -> str:
    """Creates a schedule, which is enabled at once; returns its id.

    Args:
        cron: six fields, the first for seconds.
        max_concurrency: how many of its runs may run at once.
        catch_up: whether missed times are run later.
    """
    import kfp_server_api as api

    schedule = api.V2beta1RecurringRun(
        **fields,
        mode=api.RecurringRunMode.ENABLE,
        trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
        max_concurrency=max_concurrency,
        no_catchup=not catch_up,
    )
    schedules = api.RecurringRunServiceApi(client._run_api.api_client)
    return str(schedules.recurring_run_service_create_recurring_run(schedule).recurring_run_id)
