"""`python -m components init`: looks at a data set and writes params.yaml for it."""
