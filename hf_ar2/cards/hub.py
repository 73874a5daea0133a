"""Publishing on the Hugging Face Hub: a retriever, a ranker and an index, each in a repository of its own.

A repository gets one commit, or none: what breaks off on the way leaves it as it was. The large files of all
repositories are uploaded before the first commit, so that little is left that can break off between two of them.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_ar2.cards.results import eval_result_files
from hf_ar2.models.saved import read_ranker, read_retriever

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

# Seconds before another attempt, after a connection that broke off or a server that was busy.
WAITS = (1.0, 2.0, 4.0)
INDEX_FILES = ("index.faiss", "ids.json", "index.json")
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
_BUSY = (408, 429, 500, 502, 503, 504)
# Files a checkpoint consists of; of these, what an earlier commit left and this one has not is deleted.
_OF_A_CHECKPOINT = re.compile(
    r"([^/]*\.safetensors(\.index\.json)?|((query|document)_)?\d+_[^/]+/.+|(config|modules|router_config)\.json"
    r"|(config_sentence_transformers|sentence_bert_config)\.json|tokenizer[^/]*|vocab\.[^/]+|merges\.txt|[^/]+\.model"
    r"|(special_tokens_map|added_tokens)\.json)"
)
# Left to the machine that trained.
_KEPT_BACK = {"README.md", "training_args.bin"}


def publish(
    folders: Mapping[str, Path],
    name: str,
    card: Callable[[str, Mapping[str, str]], str],
    *,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Publish",
    revision: str | None = None,
    beside: Mapping[str, Path] | None = None,
) -> dict[str, CommitInfo]:
    """Publish folders as `NAME-retriever`, `NAME-ranker` and the dataset `NAME-index`.

    Everything is checked before the first repository is touched, and all repositories are there before the first
    commit.

    Args:
        folders: `"retriever"`, `"ranker"`, `"index"` → the folder of each; those to publish.
        name: user or organisation, a slash, and a name; without a slash it is the user's.
        card: takes one of these words and the ids of all repositories, returns the README.md.
        private: visible to the owner alone; None: as the owner's settings say.
        token: with write access; None: that of `hf auth login` or of HF_TOKEN.
        message: of the commits.
        revision: the branch; None: main.
        beside: path in the repository → folder, further files of the first repository's commit.

    Returns:
        The same words → the commit: `.repo_url`, `.commit_url`, `.oid`.

    Raises:
        ValueError: a folder that is not complete; a name the Hub does not allow; a private repository that is public.
        PermissionError: no token, or one that may not write there.
        ConnectionError: the connection broke off again and again, or the Hub cannot be reached.
    """
    for what, folder in folders.items():
        check_complete(what, folder)
    ids = make_repositories(folders, name, private=private, token=token)
    token = hub_token(token)
    api = HfApi(token=token)
    files = {
        what: {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        for what, folder in folders.items()
    }
    for place, other in (beside or {}).items():
        files[next(iter(files))] |= {
            f"{place}/{path.relative_to(other).as_posix()}": path for path in _files(other)
        }
    written: dict[str, dict[str, bytes]] = {}
    for what, id in ids.items():
        readme = card(what, ids)
        results = {} if what == "index" else eval_result_files(readme, id, token)
        written[what] = {"README.md": readme.encode(), **results}
    for what, id in ids.items():
        # The large files of all repositories, before any of them shows anything of it.
        _attempt(id, partial(_upload, api, id, what, files[what], revision))
    commits: dict[str, CommitInfo] = {}
    for what, id in ids.items():
        try:
            commits[what] = _attempt(
                id, partial(_commit, api, id, what, files[what], written[what], message, revision)
            )
        except OSError as error:
            done = ", ".join(ids[other] for other in commits)
            rest = f". Published before that: {done}; the same command publishes the rest" if done else ""
            raise type(error)(f"{error}{rest}") from error
    return commits


def make_repositories(
    parts: Iterable[str], name: str, *, private: bool | None = None, token: str | None = None
) -> dict[str, str]:
    """Make the repositories that are not there yet, so that what cannot be published fails before any work.

    Args:
        parts: some of `"retriever"`, `"ranker"`, `"index"`.
        name, private, token: as in `publish`.

    Returns:
        part → id of its repository, with its owner.

    Raises:
        ValueError, PermissionError, ConnectionError: as `publish`.
    """
    ids = {what: f"{name}-{what}" for what in parts}
    for id in ids.values():
        try:
            validate_repo_id(id)
        except HFValidationError as error:
            raise ValueError(
                f"{id!r}: no name of a repository; expected OWNER/NAME or NAME, of letters, digits, '-', '_' and '.', "
                "at most 96 of them"
            ) from error
    api = HfApi(token=hub_token(token))
    for what, id in ids.items():
        ids[what] = _attempt(id, partial(_repository, api, id, what, private))
    return ids


def check_complete(what: str, folder: Path) -> None:
    """Refuse a folder that others could not load as it was meant.

    Args:
        what: `"retriever"`, `"ranker"` or `"index"`.

    Raises:
        ValueError: a file or a setting is missing; the message says which.
    """
    if what == "index":
        missing = [name for name in INDEX_FILES if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder}: no saved index: {', '.join(missing)} missing. FrozenIndex.save writes all of them"
            )
    else:
        (read_retriever if what == "retriever" else read_ranker)(folder)


def check_loads(what: str, folder: Path) -> None:
    """Load what is to be published, and use it once.

    Raises:
        ValueError: it does not load, or gives numbers that are not finite; an index with other ids than passages.
    """
    import numpy as np

    from hf_ar2.models.loading import load_ranker, load_retriever

    check_complete(what, folder)
    if what == "index":
        from hf_ar2.index.faiss_build import read_faiss_index

        held = read_faiss_index(folder / "index.faiss").ntotal
        ids = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
        if held != len(ids):
            raise ValueError(f"{folder}: index.faiss holds {held:,} passages, ids.json {len(ids):,} ids")
        return
    try:
        if what == "retriever":
            retriever = load_retriever(folder, device="cpu")
            values = [retriever.encode_query("a query"), retriever.encode_document("a passage")]
        else:
            values = [load_ranker(folder, device="cpu").predict([("a query", "a passage")])]
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{folder}: the {what} does not load: {error}. Save it anew with save_pretrained"
        ) from error
    if not all(np.isfinite(value).all() for value in values):
        raise ValueError(f"{folder}: the {what} gives numbers that are not finite; its training went wrong")


def hub_token(given: str | None = None) -> str:
    """The token to publish with: the one given, that of HF_TOKEN, or that of `hf auth login`.

    Raises:
        PermissionError: there is none. ConnectionError: HF_HUB_OFFLINE is set.
    """
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set, so that nothing can be published; unset it")
    token = given or get_token()
    if token is None:
        raise PermissionError(
            f"no token for the Hub: make one with write access at {TOKENS_PAGE}, then run: hf auth login (or set "
            "HF_TOKEN)"
        )
    return token


def _kind(what: str) -> str:
    return "dataset" if what == "index" else "model"


def _repository(api: HfApi, id: str, what: str, private: bool | None) -> str:
    """The repository's full id; made where there is none."""
    kind = _kind(what)
    full = api.create_repo(id, repo_type=kind, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(full, repo_type=kind).private:
        raise ValueError(
            f"{full}: the repository is there and public, but should be private; change that in its settings, or "
            "publish under another name"
        )
    return full


def _upload(api: HfApi, id: str, what: str, files: Mapping[str, Path], revision: str | None) -> None:
    """Bring what goes by LFS to the Hub's store, where no repository shows it before a commit names it."""
    kind = _kind(what)
    if revision:
        api.create_branch(id, branch=revision, repo_type=kind, exist_ok=True)
    additions = [CommitOperationAdd(place, str(path)) for place, path in files.items()]
    api.preupload_lfs_files(id, additions, repo_type=kind, revision=revision)


def _commit(
    api: HfApi,
    id: str,
    what: str,
    files: Mapping[str, Path],
    written: Mapping[str, bytes],
    message: str,
    revision: str | None,
) -> CommitInfo:
    kind = _kind(what)
    # made anew in every attempt: they remember how far they came
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(place, str(path)) for place, path in files.items()
    ]
    operations += [CommitOperationAdd(place, content) for place, content in written.items()]
    there = api.list_repo_files(id, repo_type=kind, revision=revision)
    operations += [
        CommitOperationDelete(place)
        for place in there
        if place not in files and _OF_A_CHECKPOINT.fullmatch(place)
    ]
    return api.create_commit(id, operations, commit_message=message, repo_type=kind, revision=revision)


def _files(folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _KEPT_BACK]
    return [
        path
        for path in found
        if not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    ]


def _attempt(id: str, action: Callable[[], Result]) -> Result:
    """Do it, again after a while where the connection broke off; other failures say what to do about them."""
    for wait in (*WAITS, None):
        try:
            return action()
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in _BUSY or wait is None:
                raise _explained(id, status, error) from error
            reason = f"the Hub answered {status}"
        except (
            HTTPError,
            ConnectionError,
            RuntimeError,
        ) as error:  # RuntimeError: of an upload of a large file
            if wait is None:
                raise ConnectionError(
                    f"{id}: the connection to the Hub broke off {len(WAITS) + 1} times ({error}); nothing was "
                    "published there. Try again later"
                ) from error
            reason = f"the connection broke off ({error})"
        logger.warning(f"{id}: {reason}; trying again in {wait:g} s")
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _explained(id: str, status: int, error: HfHubHTTPError) -> OSError:
    if status == 401 or (status == 404 and isinstance(error, RepositoryNotFoundError)):
        return PermissionError(
            f"{id}: the Hub does not accept the token (401), or does not show it this repository. Make one with write "
            f"access at {TOKENS_PAGE}, then run: hf auth login"
        )
    if status == 403:
        owner = id.split("/")[0] if "/" in id else "this name"
        return PermissionError(
            f"{id}: the token may not write there (403). Use one with write access to {owner} ({TOKENS_PAGE}, then: "
            "hf auth login), or publish under a name of your own"
        )
    said = (error.server_message or str(error)).strip().splitlines()[0]
    return ConnectionError(
        f"{id}: the Hub answered {status}: {said}; nothing was published there. Mend what it names, then give the same "
        "command again"
    )
