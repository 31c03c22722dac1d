"""Compares training variants that start from the same warm start."""
