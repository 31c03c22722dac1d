"""What is known of a run afterwards: MLflow runs and DVC hashes."""
