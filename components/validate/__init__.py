"""Row shards -> expectations kept, or the run stops."""
