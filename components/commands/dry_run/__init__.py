"""Estimates the memory and tokens that a training step needs, without weights, data or outputs."""
