"""Concord's building blocks: the steps of the pipeline and what they share."""
