"""Rows, shards, sources and splits."""
