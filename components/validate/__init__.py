"""Checks the row shards against expectations, and stops the run if one that is an error is not met."""
