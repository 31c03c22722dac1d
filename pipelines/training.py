"""The pipeline on Kubeflow: every step of the step table runs in its own container."""

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
from components.shared.tracking.lineage import code_fingerprint, code_identity
from components.steps import STEPS
from components.validate.component import validate
from pipelines.cluster_settings import Cluster
from pipelines.newest import newest
from pipelines.pods import configure_task, pipeline_config


def training_pipeline(
    settings: Settings, cluster: Cluster, image: str, data_hash: str, reuse: bool = True, find_newest: bool = False
) -> BaseComponent:
    """Builds the pipeline, with an experiment's settings as the defaults of its inputs.

    1. An importer records the raw input's URI and hash as an artifact. No step reads the artifact.
    2. ingest: raw input -> row shards. The step fetches the raw input from its URI itself. The hash is a separate
       input, because Kubeflow's cache does not notice when the data behind a URI changes.
    3. validate: row shards -> the validation's result, which sft needs as an input.
    4. sft: row shards -> the warm start.
    5. grpo: row shards, warm start -> the trained model.
    6. evaluate: row shards, both models -> predictions, metrics, report.
    7. register: both models, predictions -> a version of the better one in the registry.

    Args:
        settings: the experiment. Each section is an input of the pipeline and goes only to the steps that read it, so
            after a change of grpo's settings ingest, validate and sft are still cached. `launcher` is not an input,
            since it does not affect the results: it is in the tasks' environment.
        cluster: resources, volumes, secrets, retries and limits. They are not inputs: they are in the platform spec.
        image: the container image of every step.
        data_hash: DVC's md5 of the raw input: the default of the input of that name, and metadata of its artifact.
        reuse: whether a step may use cached outputs of the same inputs, code and settings.
        find_newest: whether the input data_uri is a pattern such as s3://bucket/gauges-*; a first step then finds the
            newest folder that matches, and its hash.

    Raises:
        ConcordError: settings of the cluster contradict those of the experiment.
    """
    tree = settings.tree()
    default = {section: json.dumps(content) for section, content in tree.items()}
    code = {name: code_fingerprint(code_identity(step)) for name, step in STEPS.items()}
    # A constant, because Kubeflow would store a placeholder without replacing it.
    raw_metadata = {"dvc_hash": data_hash} if data_hash and not find_newest else None

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
        answer_settings: str = default["answer"],
        evaluate_settings: str = default["evaluate"],
        register_settings: str = default["register"],
    ) -> None:
        """Raw images to a registered model: SFT warm start, CCC-GRPO, evaluation by shot, promotion on evidence."""
        common = {"experiment": experiment, "task_settings": task_settings}
        trains = {**common, "model_settings": model_settings}

        first = []
        if find_newest:
            found = newest(pattern=data_uri).set_display_name("Newest data")
            data_uri, data_hash = found.outputs["uri"], found.outputs["hash"]
            first.append(found.set_caching_options(False))
        raw = dsl.importer(artifact_uri=data_uri, artifact_class=dsl.Dataset, metadata=raw_metadata)
        # The importer must have no display name: ML Metadata would store it under that name, but Kubeflow's drivers
        # look for the task's key.
        rows = ingest(
            **common, code=code["ingest"], ingest_settings=ingest_settings, data_uri=data_uri, data_hash=data_hash
        )
        checked = validate(
            **common,
            code=code["validate"],
            validate_settings=validate_settings,
            register_settings=register_settings,
            ingest=rows.outputs["out"],
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
        evaluated = evaluate(
            **trains,
            code=code["evaluate"],
            sft_settings=sft_settings,
            answer_settings=answer_settings,
            evaluate_settings=evaluate_settings,
            register_settings=register_settings,
            ingest=rows.outputs["out"],
            sft=warm.outputs["out"],
            grpo=trained.outputs["out"],
        )
        registered = register(
            **trains,
            code=code["register"],
            answer_settings=answer_settings,
            evaluate_settings=evaluate_settings,
            register_settings=register_settings,
            ingest=rows.outputs["out"],
            sft=warm.outputs["out"],
            grpo=trained.outputs["out"],
            evaluate=evaluated.outputs["out"],
        )
        for task in (rows, checked, warm, trained, evaluated, registered):
            configure_task(task.set_display_name(STEPS[task.name].title), settings, cluster, image)
            task.set_caching_options(reuse and not _must_run(task.name, settings))
            if not reuse:
                task.set_env_variable(REUSE, "off")
        for task in first:
            configure_task(task, settings, cluster, image, "ingest")
        raw.set_caching_options(reuse)

    return training


def _must_run(step: str, settings: Settings) -> bool:
    """Whether the step must run even if its outputs are cached, because it compares its inputs with today's champion.

    validate may come from Kubeflow's cache if drift is only a warning; the cached warning can be out of date. If
    validate ran, its output would be a new artifact to Kubeflow, which would then start every later step too, though
    each would only fetch its cached outputs.
    """
    return STEPS[step].asks_registry and (step != "validate" or settings.validation.drift_is_error)
