"""`python -m components predict`: reads numbers off new images."""
