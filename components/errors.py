"""The errors that the command line reports without a traceback, and their exit codes."""


class ConcordError(Exception):
    """An error in the input, the settings or the environment.

    The message names the file, row or key, and the remedy. The command line prints it and exits with `exit_code`.
    """

    exit_code = 1


class RetryableError(ConcordError):
    """An error that may not occur again: a lost connection, a busy server, a device or a process that failed.

    The exit code is EX_TEMPFAIL of sysexits.h.
    """

    exit_code = 75
