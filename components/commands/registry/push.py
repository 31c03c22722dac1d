"""Uploads an exported model folder to the Hugging Face hub."""

import warnings
from pathlib import Path

from components.errors import ConcordError
from components.settings import HUB_ID
from components.shared.io.text import reason_of
from components.shared.io.transient import concord_error
from components.shared.model.adapter import ADAPTER

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", f"{ADAPTER}/*")  # those of an earlier upload are removed
REMEDY = "Set HF_TOKEN to a token that may write, from https://huggingface.co/settings/tokens."


def check_push(repository: str) -> None:
    """Checks what an upload needs before anything is written.

    Raises:
        ConcordError: the name is not ORG/NAME, or there is no token.
    """
    from huggingface_hub import get_token  # importing it takes half a second

    if "/" not in repository or not HUB_ID.fullmatch(repository):
        raise ConcordError(f"--push {repository}: expected ORG/NAME, the name of a model repository on the hub.")
    if get_token() is None:
        raise ConcordError(f"--push {repository}: there is no token. {REMEDY}")


def push(folder: Path, repository: str, endpoint: str | None = None) -> str:
    """Uploads a folder in one commit; returns the address of the repository, which is private if it is new.

    Args:
        folder: written by `export`.
        repository: ORG/NAME.
        endpoint: URL of the hub; None: HF_ENDPOINT from the environment, or the public hub.

    Raises:
        ConcordError: the upload failed. The folder is unchanged.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*commit a data file")  # the reader needs validation.parquet
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="Export from the model registry",
                delete_patterns=list(WEIGHTS),
            )
    except Exception as error:  # the library, its HTTP client and the system have no common class of errors
        raise concord_error(
            f"{repository}: could not be uploaded: {reason_of(error)}\n{REMEDY} The folder is complete; upload "
            f"it with: hf upload {repository} {folder}",
            error,
        ) from None
    return str(address)
