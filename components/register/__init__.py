"""Registers models in MLflow, promotes a challenger to champion by a rule, and rolls back."""
