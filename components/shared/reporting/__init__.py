"""Metrics with intervals, prediction tables and figures. Training imports none of it."""
