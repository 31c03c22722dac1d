"""`python -m components data`: prepares the raw input in data/, and exports rows for other tools."""
