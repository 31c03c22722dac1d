"""Reading folders of S3 buckets through a cache."""
