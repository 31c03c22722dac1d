"""The error that the command line reports without a traceback."""


class ConcordError(Exception):
    """An error in the input, the settings or the environment.

    The message names the file, row or key, and the remedy. The command line prints it and exits with 1.
    """
