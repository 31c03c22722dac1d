"""Files and processes: atomic writes, locks, full disks, prefetching, process pools, progress, secrets, text."""
