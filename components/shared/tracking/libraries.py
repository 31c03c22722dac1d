"""The versions of the libraries that can change what a step writes."""

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "transformers", "trl", "peft", "numpy", "Pillow")


def installed() -> dict[str, str]:
    """Returns the installed version of each of LIBRARIES: name -> version, `none` if it is not installed.

    The build (`+cpu`, `+cu130`) is left out, so that a laptop and a cluster have the same versions. No library is
    imported.
    """
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "none"
