"""Experiment tracking: MLflow runs, DVC hashes, the DVC remote, and the reuse of cached outputs."""
