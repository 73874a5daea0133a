"""Publishing on the Hugging Face Hub: a retriever, a ranker and an index, each in a separate repository.

Each repository gets one commit; if publishing fails before that commit, the repository does not change. The large files
of all repositories are uploaded before the first commit, so that little can fail between two commits.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_ar2.cards.facts import hub_id
from hf_ar2.cards.mark import CARD, edited_card, is_edited
from hf_ar2.cards.results import eval_result_files
from hf_ar2.files import files_in
from hf_ar2.models.lora import adapter_base
from hf_ar2.models.saved import read_ranker, read_retriever
from hf_ar2.terminal import counted

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

# Seconds before each new attempt, after a lost connection or an answer of a busy server.
WAITS = (1.0, 2.0, 4.0)
INDEX_FILES = ("index.faiss", "ids.json", "index.json")
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
_BUSY = (408, 429, 500, 502, 503, 504)
# The files of a checkpoint. Those that only the previous commit has are deleted.
_OF_A_CHECKPOINT = re.compile(
    r"([^/]*\.safetensors(\.index\.json)?|((query|document)_)?\d+_[^/]+/.+|(config|modules|router_config)\.json"
    r"|(config_sentence_transformers|sentence_bert_config)\.json|tokenizer[^/]*|vocab\.[^/]+|merges\.txt|[^/]+\.model"
    r"|(special_tokens_map|added_tokens)\.json)"
)


def publish(
    folders: Mapping[str, Path],
    name: str,
    card: Callable[[str, Mapping[str, str]], str],
    *,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Publish",
    revision: str | None = None,
    extra: Mapping[str, Path] | None = None,
    replace_card: bool = False,
) -> dict[str, CommitInfo]:
    """Publish folders as `NAME-retriever`, `NAME-ranker` and the dataset `NAME-index`.

    All folders are checked before the first repository is made, and all repositories are made before the first commit.
    A README.md that a person has edited in a folder is published unchanged. A model's results on a benchmark data set
    of the Hub are published too, as `.eval_results/NAME.yaml`.

    Args:
        folders: `"retriever"`, `"ranker"`, `"index"` → folder, of those to publish.
        name: `OWNER/NAME`, or `NAME` for the user's account.
        card: takes one of these words and the ids of all repositories, and returns the README.md.
        private: visible only to the owner; None: the default of the owner's account.
        extra: path in the repository → folder with more files for the first repository's commit.
        replace_card: replace a README.md on the Hub that a person wrote or edited; else it stays, with a warning.

    Returns:
        The same words → commit, with `.repo_url`, `.commit_url` and `.oid`.

    Raises:
        ValueError: a folder is not complete; the Hub does not allow the name; a repository to be private is public.
        PermissionError: no token, or one without write access.
        ConnectionError: the connection was lost in every attempt, or the Hub cannot be reached.
    """
    for what, folder in folders.items():
        check_complete(what, folder)
    ids = make_repositories(folders, name, private=private, token=token)
    token = hub_token(token)
    api = HfApi(token=token)
    parts: dict[str, _Part] = {}
    for what, id in ids.items():
        readme, folder = card(what, ids), folders[what]
        results = {} if what == "index" else eval_result_files(readme, id, token)
        if edited := edited_card(folder):
            logger.warning(f"{folder / CARD}: was edited; published unchanged. Delete it to get a new card")
            readme = edited
        files = {CARD: readme.encode(), **results}
        parts[what] = _Part(id, _kind(what), revision, _files(folder), files)
    for place, other in (extra or {}).items():
        first = next(iter(parts.values()))
        first.paths.update((f"{place}/{inside}", path) for inside, path in _files(other).items())
    for part in parts.values():
        # The large files of all repositories first; no repository shows them before its commit.
        _attempt(part.id, partial(_upload, api, part))
    commits: dict[str, CommitInfo] = {}
    for what, part in parts.items():
        try:
            commits[what] = _attempt(part.id, partial(_commit, api, part, message, replace_card))
        except OSError as error:
            done = ", ".join(ids[other] for other in commits)
            rest = f". Published before that: {done}; the same command publishes the rest" if done else ""
            raise type(error)(f"{error}{rest}") from error
    return commits


def make_repositories(
    parts: Iterable[str], name: str, *, private: bool | None = None, token: str | None = None
) -> dict[str, str]:
    """Make the repositories that do not exist yet, so that missing permissions show before any work.

    Returns part (`"retriever"`, `"ranker"` or `"index"`) → id of its repository, with its owner.
    """
    ids = {what: f"{name}-{what}" for what in parts}
    for id in ids.values():
        try:
            validate_repo_id(id)
        except HFValidationError as error:
            raise ValueError(
                f"{id!r}: not a valid repository name; expected OWNER/NAME or NAME, of at most 96 letters, digits, "
                "'-', '_' and '.'"
            ) from error
    api = HfApi(token=hub_token(token))
    for what, id in ids.items():
        ids[what] = _attempt(id, partial(_repository, api, id, what, private))
    return ids


def check_complete(what: str, folder: Path) -> None:
    """Check that a folder holds everything that others need to load it correctly; ValueError names what is missing."""
    if what == "index":
        missing = [name for name in INDEX_FILES if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder}: not a saved index: {', '.join(missing)} missing. FrozenIndex.save writes all of them"
            )
    else:
        (read_retriever if what == "retriever" else read_ranker)(folder)


def check_loads(what: str, folder: Path) -> None:
    """Load a folder that is to be published, and use it once; ValueError if that fails."""
    import numpy as np

    from hf_ar2.models.loading import load_ranker, load_retriever

    check_complete(what, folder)
    check_base_is_public(str(folder), adapter_base(folder))
    if what == "index":
        from hf_ar2.index.faiss_build import read_faiss_index

        held = read_faiss_index(folder / "index.faiss").ntotal
        ids = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
        if held != len(ids):
            raise ValueError(
                f"{folder}: index.faiss holds {counted(held, 'passages')}, but ids.json {counted(len(ids), 'ids')}"
            )
        return
    try:
        if what == "retriever":
            retriever = load_retriever(folder, device="cpu")
            values = [retriever.encode_query("a query"), retriever.encode_document("a passage")]
        else:
            values = [load_ranker(folder, device="cpu").predict([("a query", "a passage")])]
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{folder}: the {what} does not load: {error}. Save it again with save_pretrained"
        ) from error
    if not all(np.isfinite(value).all() for value in values):
        raise ValueError(f"{folder}: the {what} returns NaN or infinite values; its training diverged")


def check_base_is_public(place: str, base: str | None) -> None:
    """Check that others can load the base model of adapters that are to be published; ValueError names the `place`."""
    if base is not None and hub_id(base) is None:
        raise ValueError(
            f"{place}: adapters of the base model {base}, which is not on the Hub, so others cannot load them. "
            "Train with merge_adapters=True, or save merge_adapters(model), and publish that"
        )


def hub_token(given: str | None = None) -> str:
    """The token to publish with: `given`, that of HF_TOKEN, or that of `hf auth login`; PermissionError without one."""
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set, so nothing can be published; unset it")
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
    """The repository's full id; the repository is made if it does not exist."""
    kind = _kind(what)
    full = api.create_repo(id, repo_type=kind, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(full, repo_type=kind).private:
        raise ValueError(
            f"{full}: the repository exists and is public, but should be private; change that in its settings, or "
            "publish under another name"
        )
    return full


class _Part(NamedTuple):
    """A repository, and what is published in it: files on disk, and others by their content."""

    id: str
    kind: str
    revision: str | None
    paths: dict[str, Path]
    written: dict[str, bytes]

    def additions(self) -> list[CommitOperationAdd]:
        """New objects for every attempt, because an operation stores the state of its upload."""
        return [CommitOperationAdd(place, str(path)) for place, path in self.paths.items()]


def _upload(api: HfApi, part: _Part) -> None:
    if part.revision:
        api.create_branch(part.id, branch=part.revision, repo_type=part.kind, exist_ok=True)
    api.preupload_lfs_files(part.id, part.additions(), repo_type=part.kind, revision=part.revision)


def _commit(api: HfApi, part: _Part, message: str, replace_card: bool) -> CommitInfo:
    place: dict[str, Any] = {"repo_type": part.kind, "revision": part.revision}
    there, written = api.list_repo_files(part.id, **place), dict(part.written)
    if CARD in there and not replace_card:
        card = Path(api.hf_hub_download(part.id, CARD, **place))
        if is_edited(card.read_text(encoding="utf-8", errors="replace")):
            logger.warning(
                f"{part.id}: README.md was edited on the Hub and is not replaced; its results may be older. Replace it "
                "with --replace-card or replace_card=True"
            )
            del written[CARD]
    old = [name for name in there if name not in part.paths and _OF_A_CHECKPOINT.fullmatch(name)]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [*part.additions()]
    operations += [CommitOperationAdd(name, content) for name, content in written.items()]
    operations += [CommitOperationDelete(name) for name in old]
    return api.create_commit(part.id, operations, commit_message=message, **place)


def _files(folder: Path) -> dict[str, Path]:
    """Path in the repository → file, without the card, which is rendered again, and files about this machine."""
    files = {path.relative_to(folder).as_posix(): path for path in files_in(folder)}
    private = re.compile(r"(.*/)?(__.*|training_args\.bin)")
    return {inside: path for inside, path in files.items() if not private.fullmatch(inside)}


def _attempt(id: str, action: Callable[[], Result]) -> Result:
    """Run an action, and retry it if the connection was lost; other errors say what to do."""
    for wait in (*WAITS, None):
        try:
            return action()
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in _BUSY or wait is None:
                raise _explained(id, status, error) from error
            reason = f"the Hub answered {status}"
        except (HTTPError, ConnectionError, RuntimeError) as error:  # large files raise RuntimeError
            if wait is None:
                raise ConnectionError(
                    f"{id}: the connection to the Hub was lost {len(WAITS) + 1} times ({error}); nothing was published "
                    "there. Try again later"
                ) from error
            reason = f"the connection was lost ({error})"
        logger.warning(f"{id}: {reason}; trying again in {wait:g} s")
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _explained(id: str, status: int, error: HfHubHTTPError) -> OSError:
    if status == 401 or (status == 404 and isinstance(error, RepositoryNotFoundError)):
        return PermissionError(
            f"{id}: the Hub does not accept the token (401), or the token cannot see this repository. Make one with "
            f"write access at {TOKENS_PAGE}, then run: hf auth login"
        )
    if status == 403:
        owner = id.split("/")[0] if "/" in id else "this name"
        return PermissionError(
            f"{id}: the token has no write access there (403). Use one with write access to {owner} ({TOKENS_PAGE}, "
            "then: hf auth login), or publish under your own name"
        )
    said = (error.server_message or str(error)).strip().splitlines()[0]
    return ConnectionError(
        f"{id}: the Hub answered {status}: {said}; nothing was published there. Fix the problem, then run "
        "the same command again"
    )
