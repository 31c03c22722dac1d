"""Names that the pipeline and the step in its container agree on."""

STATE = "/checkpoints"  # mount path of the volume for training state, which outlives the container
PAGE = "page"  # artifact: the report as one HTML file
REPORT_PAGE = "report.html"  # that file in the output `report`
REUSE = "CONCORD_REUSE"  # environment variable; `off`: a step computes its outputs even if they are cached
TRIES = "CONCORD_TRIES"  # environment variable: how often and how long a pod tries its step, as JSON (tries.py)
RUN_ID = "KFP_RUN_ID"  # environment variable: id of the run that the step belongs to
TRAIN_JOB = "CONCORD_TRAIN_JOB"  # environment variable of a head: the TrainJob that it makes, as JSON (head.py)
NODE_FOLDER = "CONCORD_NODE_FOLDER"  # environment variable of a node: what it shares with the head (node_folder.py)
