"""The training pipeline on Kubeflow: compile, run in local containers, submit to a cluster, lock its outputs."""
