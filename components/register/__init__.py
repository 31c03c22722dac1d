"""The model registry: versions, the rule that makes one champion, and the way back."""
