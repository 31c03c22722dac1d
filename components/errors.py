"""The one error that a person is meant to read: it names the place and the remedy."""


class ConcordError(Exception):
    """A fault in the input, the settings or the surroundings, told in words.

    The command line prints it without a traceback and exits 1. The message says where (file, row, key) and what to do.
    """
