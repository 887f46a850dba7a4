"""Puts an exported policy or a run's preferences on the Hugging Face hub, by huggingface_hub's own client and the key it holds.

Of a policy only files that a plain transformers folder has are sent (`SENT`), of a data set its card and its parquet file, and
none that holds a path of this machine, its name, or its user's. Nothing is sent before all of them were looked at.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import yaml
from pydantic import JsonValue

from stllava.data.exchange.parquet import TRAIN, parquet_texts
from stllava.errors import StllavaError
from stllava.remote.identities import identity_in

CARD = "README.md"
SENT = (
    CARD,
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template*",
    "*modeling_*.py",
    "*configuration_*.py",
)
"""What is sent of a folder; plans, manifests, locks and whatever else lies there stays here."""
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def push_policy(folder: Path, repository: str, *, private: bool, metadata: Mapping[str, JsonValue]) -> tuple[str, list[str]]:
    """Send an exported policy and return its address and the names of the files that were sent.

    Args:
        folder: What `stllava export` wrote.
        repository: owner/name; made where it is not there.
        private: Whether a new repository is seen by its owner alone.
        metadata: What is added to the head of the card, such as `model-index`.

    Raises:
        StllavaError: Where a file would tell of this machine or its user, or the hub refuses.
    """
    _refuse_name(repository)
    files = sorted(path for path in folder.iterdir() if path.is_file() and any(fnmatch(path.name, one) for one in SENT))
    if not any(path.suffix == ".safetensors" for path in files) or not (folder / CARD).is_file():
        raise StllavaError(f"{folder} is no exported policy", expected="weights and a card", remedy="Run stllava export first.")
    card = _with_metadata((folder / CARD).read_text(encoding="utf-8"), metadata)
    for path in files:
        if path.suffix != ".safetensors":
            _refuse_identities(path, [card if path.name == CARD else path.read_text(encoding="utf-8", errors="replace")])
    contents = {path.name: card.encode() if path.name == CARD else path for path in files}
    return _commit(contents, repository, private=private, kind="model"), [path.name for path in files]


def push_dataset(folder: Path, repository: str, *, private: bool) -> tuple[str, list[str]]:
    """Send a data set and return its address and the names of the files that were sent.

    Args:
        folder: What `stllava convert dataset` wrote.
        repository: owner/name; made where it is not there.
        private: Whether a new repository is seen by its owner alone.

    Raises:
        StllavaError: Where a file would tell of this machine or its user, or the hub refuses.
    """
    _refuse_name(repository)
    card, rows = folder / CARD, folder / TRAIN
    if not rows.is_file() or not card.is_file():
        raise StllavaError(
            f"{folder} is no data set", expected=f"{TRAIN} and a card", remedy="Run stllava convert dataset first."
        )
    _refuse_identities(card, [card.read_text(encoding="utf-8")])
    _refuse_identities(rows, parquet_texts(rows))
    contents: dict[str, bytes | Path] = {path.name: path for path in (card, rows)}
    return _commit(contents, repository, private=private, kind="dataset"), list(contents)


def _refuse_name(repository: str) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise StllavaError(
            f"{repository!r} is no repository", expected="owner/name", remedy="Name your account and what you send."
        )


def _commit(contents: Mapping[str, bytes | Path], repository: str, *, private: bool, kind: Literal["model", "dataset"]) -> str:
    """Send files by their names in the repository, which is made where it is not there, and return its address."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    message = f"Add the {'policy' if kind == 'model' else 'preferences'} that stllava exported"
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True, repo_type=kind)
        made = api.create_commit(repository, operations, commit_message=message, repo_type=kind)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        told = " ".join(str(error).split())[:300]
        raise StllavaError(
            f"the hub did not take {repository}: {type(error).__name__}: {told}",
            expected="a network (HF_HUB_OFFLINE not set), and a key that may write there (hf auth login, or HF_TOKEN)",
            remedy="Put that right and give the same command again: the exported folder is whole.",
        ) from error
    return str(made.repo_url)


def _with_metadata(card: str, metadata: Mapping[str, JsonValue]) -> str:
    """A card with more in its head, which is YAML between two lines of dashes."""
    _, head, body = card.split("---\n", 2)
    added = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True) if metadata else ""
    return f"---\n{head}{added}---\n{body}"


def _refuse_identities(path: Path, texts: Iterable[str]) -> None:
    """Refuse a file among whose texts one names a folder of this machine, the machine, or who works on it."""
    for text in texts:
        if (found := identity_in(text)) is not None:
            raise StllavaError(
                f"{path} names {found}",
                expected="files that tell nothing of this machine or its user",
                remedy="Take that out of the file, and give the same command again; nothing was sent.",
            )
