"""`python -m components data`: the raw input in data/, and rows for other tools."""
