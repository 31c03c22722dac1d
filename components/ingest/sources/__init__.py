"""Readers of raw input, one module per format."""
