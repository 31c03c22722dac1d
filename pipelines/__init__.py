"""The DAG on Kubeflow."""
