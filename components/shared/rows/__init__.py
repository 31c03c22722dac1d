"""The rows between steps: Parquet shards, images, label histograms."""
