"""Models and indexes in repositories of the Hugging Face Hub.

A repository holds the files that `save_pretrained` or `save` writes, and a card. Needs
huggingface_hub, which finds the address and the token as it always does.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from csrkern._version import __version__

# As the Hub has it; other names can only be those of folders.
REPOSITORY = re.compile(
    r"(?=.{3,96}$)(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/\w(?:[\w.-]*\w)?", re.ASCII
)
MODEL_FILES = ("config.json", "model.safetensors")
# A repository may have a pytorch_model.bin beside it.
INDEX_FILES = ("index.json", "*-" + "[0-9a-f]" * 16 + ".bin")
CARD = "README.md"


def is_repository(name: str | os.PathLike[str]) -> bool:
    """Whether a name can only be of a repository: "org/name", and no such folder here."""
    return (
        isinstance(name, str) and REPOSITORY.fullmatch(name) is not None and not Path(name).exists()
    )


def push(
    write: Callable[[Path], None],
    repo_id: str,
    files: Sequence[str],
    card: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Make a repository if there is none, and one commit of what `write` puts into a folder.

    Args:
        write: called with an empty folder.
        repo_id: "org/name".
        files: patterns; what matches them in the repository and is not written is deleted.
        card: of README.md, which is written only where `write` leaves none.
        private: whether a new repository is.
        revision: the branch, which must exist; None: the main one.
        message: of the commit.
        token: None: the one that is logged in.

    Returns: the address of the commit.

    Raises:
        ImportError: without huggingface_hub.
        ValueError: if `repo_id` is not "org/name".
        OSError: if the Hub cannot be reached, or refuses.
    """
    if REPOSITORY.fullmatch(repo_id) is None:
        raise ValueError(f"repo_id: expected 'org/name', got {repo_id!r}")
    api = _hub().HfApi(token=token, library_name="csrkern", library_version=__version__)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        path = Path(folder) / CARD
        if not path.exists():
            path.write_text(card, "utf-8")
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=message or f"Upload with csrkern {__version__}",
                delete_patterns=list(files),
            )
        except Exception as error:
            # The HTTP client, which differs by release, has errors that are no OSError.
            if not type(error).__module__.startswith("httpx"):
                raise
            raise OSError(f"{repo_id}: the Hub cannot be reached: {error}") from error
    return str(commit.commit_url)


def pull(
    repo_id: str,
    files: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return a folder of the Hub's cache with those files of a repository, downloaded if needed.

    Raises:
        ImportError: without huggingface_hub.
        FileNotFoundError: if there is no such repository or revision, or it lacks these files.
        OSError: if the Hub cannot be reached and the cache has nothing.
    """
    hub = _hub()
    errors = hub.errors
    try:
        folder = hub.snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=list(files),
            library_name="csrkern",
            library_version=__version__,
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        at = f" at {revision}" if revision else ""
        raise FileNotFoundError(
            f"{repo_id}: there is no such folder here, and no such repository{at} on the Hub that "
            "this token may read"
        ) from error
    found = Path(folder)
    if not (found / files[0]).exists():
        raise FileNotFoundError(f"{repo_id}: the repository has no {files[0]}")
    return found


def card_of(title: str, tags: Sequence[str], lines: Sequence[str], results: str | None) -> str:
    """Return a card: what it is, how it is used, and what was measured."""
    head = ["---", "library_name: csrkern", "tags:", *(f"- {tag}" for tag in tags), "---", ""]
    measured = ["", "## Measured", "", results.strip()] if results else []
    return "\n".join([*head, f"# {title}", "", *lines, *measured]) + "\n"


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(
            f"the Hub needs huggingface_hub: pip install huggingface_hub ({error})"
        ) from error
    return huggingface_hub
