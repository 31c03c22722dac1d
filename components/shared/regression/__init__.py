"""Pure numbers: answers, concordance, rewards, shots, metrics. No I/O and nothing of ours outside this folder."""
