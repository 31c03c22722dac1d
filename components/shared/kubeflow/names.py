"""Names that both sides of a step's container go by: the pipeline that starts it, and who looks at what it left."""

STATE = "/checkpoints"  # a volume is mounted here: training state outlives the container
PAGE = "page"  # the artifact that is the report as one HTML file
REPORT_PAGE = "report.html"  # that file, in the output `report`
REUSE = "CONCORD_REUSE"  # off: a step computes its outputs, whoever has made the same before
RUN_ID = "KFP_RUN_ID"  # the variable by which a step knows the run that it belongs to
