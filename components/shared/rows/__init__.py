"""The rows that steps exchange: Parquet shards, images, label histograms."""
