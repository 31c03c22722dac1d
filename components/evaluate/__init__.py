"""Evaluates the models on the test set: answers, errors by shot group, plots and the HTML report."""
