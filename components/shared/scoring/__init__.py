"""Pure numbers: answers, shot groups, errors. Imports numpy and nothing of ours."""
