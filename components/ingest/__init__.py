"""Raw input -> row shards of train, val and test."""
