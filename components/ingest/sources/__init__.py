"""The forms in which raw input comes: a reader for each."""
