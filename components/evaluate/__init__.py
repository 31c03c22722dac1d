"""The judgement on the test set: what a model answers, how far off it is, and where."""
