"""The content of a local model folder, by which `model.revision` names it, as a commit names a model of a hub."""

from pathlib import Path

from components.errors import ConcordError
from components.settings import Model
from components.shared.tracking.hashes import dvc_hash


def content_revision(folder: Path) -> str:
    """Hashes a model folder as DVC does, without hidden files: downloads leave their times there.

    Each byte is read once, large files side by side. The model is loaded after that, from memory.
    """
    return dvc_hash(folder, hidden=False)


def revision_error(model: Model) -> str | None:
    """Says what is wrong if `model.name` is a local folder whose content is not `model.revision`."""
    if model.name == "tiny" or not Path(model.name).is_dir():
        return None
    found = content_revision(Path(model.name))
    if model.revision == found:
        return None
    says = "names no content" if model.revision is None else f"is {model.revision}"
    return (
        f"model.revision: {says}, and the content of {model.name} is {found}. Set model.revision to {found}, or "
        "restore the folder."
    )


def check_revision(model: Model) -> None:
    """Raises ConcordError if `model.name` is a local folder whose content is not `model.revision`."""
    if error := revision_error(model):
        raise ConcordError(error)
