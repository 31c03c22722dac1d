"""Metrics with intervals, predictions files and figures. Training imports nothing from this package."""
