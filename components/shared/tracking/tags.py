"""Names of the MLflow tags and the artifact by which a step's run is described and found again."""

FINGERPRINT = "concord.fingerprint"  # of the experiment's settings, on the parent run
KIND = "concord.kind"  # of the parent run: experiment or pipeline
STEP = "concord.step"
INPUT = "concord.in."  # + port name: DVC hash of the input
OUTPUT = "concord.out."  # + port name: DVC hash of the output
KEY = "concord.key"  # `Lineage.key`: equal for runs with the same inputs, code and params
CODE = "concord.code"
PIPELINE_RUN = "concord.pipeline_run"  # Kubeflow's run id, on the parent and on every step
REUSED = "concord.reused"  # source of outputs that were fetched instead of computed: `dvc.lock` or `run ID`
REMOTE = "concord.remote"  # address of the DVC remote that has the outputs
PARENT = "mlflow.parentRunId"
COMMIT = "mlflow.source.git.commit"
DIRTY = "concord.git.dirty"
ERROR = "concord.error"

LINEAGE = "lineage.json"  # artifact: inputs, code, params and outputs, as dvc.lock needs them
