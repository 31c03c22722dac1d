"""Benchmarks: our GRPO step against TRL's, and the data steps against a bare loop."""
