"""The files of an index and its meta.json: their names, and checks that they are complete and unchanged."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from hf_ar2.files import DamagedFile, check_files, read_json, write_note

logger = logging.get_logger(__name__)

FORMAT = 1
IDS = "ids.json"
# Names that only this library uses, and those of a saved copy, which other programs may use too.
_OUR_FILES = re.compile(r"(embeddings-[0-9a-f]{16}(\.\d+-of-\d+)?\.npy|index-[0-9a-f]{16}\.faiss)(\.tmp)?")
SAVED_FILES = {"embeddings": "embeddings.npy", "index": "index.faiss"}
# The fields that embeddings depend on.
ENCODED = ("format", "fingerprint", "dtype", "dim", "ntotal")


def file_name(meta: dict[str, Any], rank: int | None = None, world_size: int = 1) -> str:
    """The name of a rank's embeddings, or of the FAISS file: new contents never overwrite a file that is open."""
    fields = ENCODED if rank is not None else (*ENCODED, "factory")
    digest = hashlib.sha256(json.dumps([meta[field] for field in fields]).encode("utf-8")).hexdigest()[:16]
    if rank is None:
        return f"index-{digest}.faiss"
    return f"embeddings-{digest}{'' if world_size == 1 else f'.{rank}-of-{world_size}'}.npy"


def shard_kinds(meta: dict[str, Any]) -> list[str]:
    """The names of the embeddings' files in `files` and `bytes` of a meta.json, by rank."""
    count = len(meta["rows"])
    return ["embeddings"] if count == 1 else [f"embeddings {rank} of {count}" for rank in range(count)]


def open_shards(folder: Path, meta: dict[str, Any]) -> list[np.ndarray]:
    """The memory maps of the embeddings; DamagedFile if a file has another number of rows than expected."""
    shards = []
    for kind, (start, stop) in zip(shard_kinds(meta), meta["rows"], strict=True):
        path = folder / meta["files"][kind]
        shards.append(np.load(path, mmap_mode="r"))
        if len(shards[-1]) != stop - start:
            raise DamagedFile(
                f"{path}: {len(shards[-1]):,} embeddings, expected {stop - start:,}, of rows {start} to {stop - 1}: "
                f"the index is damaged. Delete {folder} and build it again (hf-ar2 index)."
            )
    return shards


def write_meta(folder: Path, meta: dict[str, Any], known: Mapping[str, str] | None = None) -> None:
    """Write meta.json with sizes and checksums; `known` has those checksums that other processes made."""
    sizes = {kind: (folder / name).stat().st_size for kind, name in meta["files"].items()}
    files = [folder / name for name in meta["files"].values()]
    write_note(folder / "meta.json", meta | {"bytes": sizes}, files, known)


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta.json of an index.

    Raises:
        FileNotFoundError: no index there. ValueError: a meta.json that is damaged, or not of this version.
    """
    path = folder / "meta.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no index: meta.json is missing. None was built there, or the build was interrupted; "
            "build it with CorpusIndex.build (hf-ar2 index)."
        )
    try:
        meta = read_json(path)
    except DamagedFile as error:
        raise DamagedFile(f"{error}: delete {folder} and build the index again") from error
    found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
    if found != FORMAT:
        raise ValueError(
            f"{path}: this version cannot read the index: found format {found}, expected {FORMAT}. "
            f"Delete {folder} and build the index again."
        )
    return {"rows": [[0, meta.get("ntotal")]]} | meta  # older indexes lack `rows`


def check_contents(folder: Path, meta: dict[str, Any]) -> None:
    """Raise `DamagedFile` if a file of an index is missing or was changed."""
    check_sizes(folder, meta)
    check_files(folder, meta.get("checksums", {}), f"Delete {folder} and build the index again.")


def forget_damaged(folder: Path) -> None:
    """Delete the files of an index if one is damaged, with a warning: it is built again."""
    try:
        if (folder / "meta.json").is_file():
            check_contents(folder, read_meta(folder))
    except ValueError as error:
        logger.warning(f"{error} It is built again now.")
        remove_old_files(folder, named_files(folder), {})


def check_sizes(folder: Path, meta: dict[str, Any]) -> None:
    """Raise `DamagedFile` if a file of an index is missing or has another size than it was written with."""
    for kind, name in meta["files"].items():
        path = folder / name
        found = path.stat().st_size if path.exists() else None
        if found != meta["bytes"][kind]:
            raise DamagedFile(
                f"{path} is {'missing' if found is None else f'{found} bytes long'}, expected "
                f"{meta['bytes'][kind]} bytes: the index is damaged. Delete {folder} and build it again "
                "(hf-ar2 index)."
            )


def matching_meta(folder: Path, wanted: Mapping[str, Any], verify: bool) -> dict[str, Any] | None:
    """The meta.json of the index in a folder; None if there is none with these fields, or it is damaged.

    Sizes of files are compared, with `verify` their checksums as well.
    """
    try:
        meta = read_meta(folder)
        if any(meta[name] != value for name, value in wanted.items()):
            return None
        (check_contents if verify else check_sizes)(folder, meta)
    except (FileNotFoundError, ValueError):
        return None
    return meta


def named_files(folder: Path) -> set[str]:
    """The files that a folder's meta.json names; it may be damaged."""
    try:
        return set(json.loads((folder / "meta.json").read_text(encoding="utf-8"))["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def check_no_foreign_files(folder: Path) -> None:
    """Raise if a folder has vectors or a FAISS file that no meta.json describes."""
    for name in set(SAVED_FILES.values()) - named_files(folder):
        if (folder / name).exists():
            raise ValueError(
                f"{folder}: found {name}, which no meta.json there names, so it is not this library's. Name another "
                "folder for the index (to use a FAISS file: `hf-ar2 tune-queries --index`), or delete "
                f"{name} if an interrupted copy left it"
            )


def remove_old_files(folder: Path, old: set[str], names: dict[str, str]) -> None:
    """Remove the files of an earlier index or an interrupted build, and no others."""
    old = old & {*SAVED_FILES.values(), IDS}
    for path in folder.iterdir():
        if (path.name in old or _OUR_FILES.fullmatch(path.name)) and path.name not in names.values():
            path.unlink()
