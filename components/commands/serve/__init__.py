"""`python -m components serve`: answers requests over HTTP with a registered version."""
