"""Reads folders of S3 buckets through a local cache."""
