"""The pipeline on Kubeflow: the steps of the step table, each in a container of its own."""

import json

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.grpo.component import grpo
from components.ingest.component import ingest
from components.register.component import register
from components.settings import Settings
from components.sft.component import sft
from components.shared.kubeflow.names import REUSE
from components.shared.tracking.lineage import code_identity, code_mark
from components.steps import STEPS
from components.validate.component import validate
from pipelines.cluster_settings import Cluster
from pipelines.pods import pipeline_config, place


def training_pipeline(
    settings: Settings, cluster: Cluster, image: str, data_hash: str, reuse: bool = True
) -> BaseComponent:
    """The pipeline, with an experiment's settings as the defaults of its inputs.

    1. An importer records the raw input's URI and hash as an artifact. Nothing reads the artifact.
    2. ingest: raw input, fetched from its URI by the step itself -> row shards. The hash is an input of its own, since
       a cache cannot see behind a URI.
    3. validate: row shards -> the validation's result, without which nothing is trained.
    4. sft: row shards -> the warm start.
    5. grpo: row shards, warm start -> the trained model.
    6. evaluate: row shards, both models -> predictions, metrics, report.
    7. register: model, predictions -> a version in the registry.

    Args:
        settings: the experiment. Each section is an input of the pipeline and goes to the steps that read it, so that
            a change of grpo's settings leaves the results of ingest, validate and sft in the cache. `launcher` is
            none, since it decides no result: it is in the tasks' environment.
        cluster: resources, volumes, secrets, retries and limits. No input either: it is in the platform spec.
        image: the container image of every step.
        data_hash: default of the input of that name: DVC's md5 of the raw input. Stamped on its artifact, too.
        reuse: whether a step takes outputs that were made before from the same inputs, code and settings.

    Raises:
        ConcordError: settings of the cluster contradict those of the experiment.
    """
    tree = settings.tree()
    default = {section: json.dumps(content) for section, content in tree.items()}
    code = {name: code_mark(code_identity(step)) for name, step in STEPS.items()}
    # Said here: a placeholder would reach Kubeflow's store as it stands.
    stamp = {"dvc_hash": data_hash} if data_hash else None

    @dsl.pipeline(name="concord-training", display_name="Concord training", pipeline_config=pipeline_config(cluster))
    def training(
        data_uri: str,
        data_hash: str = data_hash,
        experiment: str = settings.experiment,
        task_settings: str = default["task"],
        ingest_settings: str = default["ingest"],
        validate_settings: str = default["validate"],
        model_settings: str = default["model"],
        sft_settings: str = default["sft"],
        grpo_settings: str = default["grpo"],
        evaluate_settings: str = default["evaluate"],
        register_settings: str = default["register"],
    ) -> None:
        """Raw images to a registered model: SFT warm start, CCC-GRPO, evaluation by shot, promotion on evidence."""
        common = {"experiment": experiment, "task_settings": task_settings}
        trains = {**common, "model_settings": model_settings}

        raw = dsl.importer(artifact_uri=data_uri, artifact_class=dsl.Dataset, metadata=stamp)
        # No display name: ML Metadata keeps an importer under it, and drivers look for the task's key.
        rows = ingest(
            **common, code=code["ingest"], ingest_settings=ingest_settings, data_uri=data_uri, data_hash=data_hash
        )
        checked = validate(
            **common, code=code["validate"], validate_settings=validate_settings, ingest=rows.outputs["out"]
        )
        warm = sft(
            **trains,
            code=code["sft"],
            sft_settings=sft_settings,
            ingest=rows.outputs["out"],
            validate=checked.outputs["out"],
        )
        trained = grpo(
            **trains,
            code=code["grpo"],
            grpo_settings=grpo_settings,
            ingest=rows.outputs["out"],
            sft=warm.outputs["out"],
        )
        judged = evaluate(
            **trains,
            code=code["evaluate"],
            sft_settings=sft_settings,
            evaluate_settings=evaluate_settings,
            ingest=rows.outputs["out"],
            sft=warm.outputs["out"],
            grpo=trained.outputs["out"],
        )
        registered = register(
            **trains,
            code=code["register"],
            evaluate_settings=evaluate_settings,
            register_settings=register_settings,
            ingest=rows.outputs["out"],
            grpo=trained.outputs["out"],
            evaluate=judged.outputs["out"],
        )
        for task in (rows, checked, warm, trained, judged, registered):
            place(task.set_display_name(STEPS[task.name].title), settings, cluster, image)
            task.set_caching_options(reuse and not _must_run(task.name, settings))
            if not reuse:
                task.set_env_variable(REUSE, "off")
        raw.set_caching_options(reuse)

    return training


def _must_run(step: str, settings: Settings) -> bool:
    """Whether old outputs will not do, since the step holds what it is given against today's champion.

    A drift that is only reported is left to Kubeflow's cache, as it stood then: what a step makes anew is a new
    artifact to Kubeflow, so every later step would start as well, to fetch what it made before.
    """
    return STEPS[step].asks_registry and (step != "validate" or settings.validation.drift_stops)
