"""Ingest: converts raw input to Parquet shards of train, val and test."""
