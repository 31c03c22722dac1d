"""GRPO with a reward that compares the whole batch."""
