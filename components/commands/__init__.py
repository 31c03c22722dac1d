"""Commands that are not steps of the pipeline."""
