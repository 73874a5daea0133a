"""The token ids of many texts, without special tokens, tokenised once and stored."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from hf_ar2.encoding.processes import Processes
from hf_ar2.files import DamagedFile, check_files, read_json, write_note, writing
from hf_ar2.folders import complete_folder
from hf_ar2.progress import progress_bar
from hf_ar2.terminal import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.get_logger(__name__)

_FORMAT = 1
_TEXTS_PER_BATCH = 10_000


class TokenStore:
    """The token ids of many texts, without special tokens.

    Attributes:
        ids: int32 [T], the ids of all texts, concatenated (a memory map when opened from a folder).
        offsets: int64 [N+1]; text i has `ids[offsets[i]:offsets[i + 1]]`.
        max_tokens: the length at which texts were truncated when stored; None if they were not.
        folder: where it was opened from; None for arrays in memory. Pickling a store with a folder pickles the path.
    """

    def __init__(
        self, ids: np.ndarray, offsets: np.ndarray, fingerprint: str = "", max_tokens: int | None = None
    ) -> None:
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(ids):
            raise ValueError(
                f"offsets must start at 0 and end at the number of ids, {len(ids)}; "
                f"found {len(offsets)} offsets from {offsets[:1]} to {offsets[-1:]}"
            )
        self.ids = ids
        self.offsets = offsets
        self.fingerprint = fingerprint
        self.max_tokens = max_tokens
        self.folder: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            return TokenStore, (self.ids, self.offsets, self.fingerprint, self.max_tokens)
        # A worker maps the files, which its parent has checked, instead of getting a copy.
        return TokenStore.open, (self.folder, self.fingerprint, False)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Stored tokens of each text, int64 [N]."""
        return np.diff(np.asarray(self.offsets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def __repr__(self) -> str:
        texts, tokens = counted(len(self), "texts"), counted(len(self.ids), "tokens")
        return f"TokenStore({texts}, {tokens}, max_tokens={self.max_tokens})"

    @classmethod
    def open(cls, folder: str | Path, fingerprint: str | None = None, verify: bool = True) -> TokenStore:
        """Map a folder written by `tokenize`; `fingerprint` is the expected one, `verify` compares checksums.

        Raises:
            FileNotFoundError: the folder holds no token store.
            ValueError: its files do not fit its meta.json, or it has another fingerprint.
        """
        folder = Path(folder)
        if not (folder / "meta.json").exists():
            raise FileNotFoundError(
                f"{folder} holds no token store: meta.json is missing. Delete the folder if it exists, and make the "
                "store with tokenize()."
            )
        again = f"Delete {folder} and tokenise again."
        try:
            meta = read_json(folder / "meta.json")
        except DamagedFile as error:
            raise DamagedFile(f"{error}. {again}") from error
        if fingerprint is not None and meta["fingerprint"] != fingerprint:
            raise ValueError(
                f"the token store in {folder} was made from other texts or by another tokenizer: its fingerprint is "
                f"{meta['fingerprint']}, expected {fingerprint}. Delete the folder and tokenise again."
            )
        ids = _open_map(folder / "ids.bin", np.int32, meta["tokens"])
        offsets = _open_map(folder / "offsets.bin", np.int64, meta["texts"] + 1)
        if verify:
            check_files(folder, meta.get("checksums", {}), again)
        store = cls(ids, offsets, meta["fingerprint"], meta["max_tokens"])
        store.folder = folder.absolute()
        return store


def _open_map(path: Path, dtype: type, count: int) -> np.ndarray:
    expected = count * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.exists() else None
    if found != expected:
        raise DamagedFile(
            f"{path} is {'missing' if found is None else f'{found} bytes long'}, expected {expected} bytes: "
            f"the token store is damaged. Delete {path.parent} and tokenise again."
        )
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r", shape=(count,)) if count else np.empty(0, dtype)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hex digits that identify a tokenizer's output: vocabulary, merges, normaliser, special tokens.

    Its name, folder, truncation and padding are left out, because they change with use or between loads.
    """
    backend = backend_of(tokenizer)
    if backend is None:
        state: dict[str, Any] = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
        folders = ("name_or_path", "tokenizer_file", *tokenizer.vocab_files_names)
        given = tokenizer.init_kwargs.items()
        state["options"] = {key: str(value) for key, value in given if key not in folders}
    else:
        state = json.loads(backend.to_str())
        state["truncation"] = state["padding"] = None
    state["sides"] = [tokenizer.truncation_side, bool(getattr(tokenizer, "split_special_tokens", False))]
    return _hash(state)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()[:32]


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The `tokenizers.Tokenizer` of a fast tokenizer; None for one written in Python (ByT5, Japanese BERT)."""
    return getattr(tokenizer, "backend_tokenizer", None)


def tokenize(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: str | Path,
    *,
    max_tokens: int,
    text_fingerprint: str,
    prompt: str = "",
    description: str = "Tokenising",
    show_progress: bool = True,
    processes: Processes | None = None,
) -> TokenStore:
    """Tokenise texts once; a second call with the same texts and tokenizer opens the stored ids.

    Args:
        tokenizer: its truncation and padding settings are restored.
        cache_dir: the store is written to `cache_dir/<fingerprint>/`; several processes may call at once.
        max_tokens: texts are truncated to this many tokens, without special tokens, on the tokenizer's truncation side.
        text_fingerprint: identifies `texts`; other texts need another one.
        prompt: prepended to every text.
        processes: the ranks of a run, all of which call this and tokenise a share; None: this process alone.

    Raises:
        ValueError: max_tokens below 1, or a cached store with another number of texts.
        OSError: the disk is full.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, found {max_tokens}")
    fingerprint = _hash([_FORMAT, tokenizer_fingerprint(tokenizer), prompt, max_tokens, text_fingerprint])
    folder = Path(cache_dir) / fingerprint
    ranks = processes or Processes(0, 1, torch.device("cpu"))
    if not ranks.of_first(ranks.is_first and _is_whole(folder)):
        meta = {"format": _FORMAT, "fingerprint": fingerprint, "max_tokens": max_tokens, "prompt": prompt}
        bar = partial(progress_bar, description=description, unit="texts", show=show_progress)
        _write_store(folder, texts, tokenizer, meta, ranks, bar)
    ranks.share(folder.parent, folder.name)
    store = TokenStore.open(folder, fingerprint, verify=False)
    if len(store) != len(texts):
        raise ValueError(
            f"the token store in {folder} holds {counted(len(store), 'texts')}, but {len(texts)} were given with the "
            f"same text_fingerprint {text_fingerprint!r}: other texts need another fingerprint."
        )
    return store


def _is_whole(folder: Path) -> bool:
    """Whether there is a store; a damaged one is deleted."""
    try:
        return folder.exists() and TokenStore.open(folder) is not None
    except (FileNotFoundError, DamagedFile) as error:
        logger.warning(f"{error} It is made again now.")
        shutil.rmtree(folder, ignore_errors=True)
        return False


def _write_store(
    folder: Path,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    meta: dict[str, Any],
    ranks: Processes,
    bar: Callable[..., Any],
) -> None:
    """Tokenise: each rank writes the files of its share, and the first rank joins them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A name for this call alone, because another run may tokenise the same texts at the same time.
    name = ranks.of_first(f".{folder.name}-{secrets.token_hex(4)}.partial")
    parts, rows = folder.parent / name, ranks.part_of(len(texts))
    try:
        with writing(folder):
            parts.mkdir(exist_ok=True)
            _tokenize_part(_part(parts, ranks.rank), texts, rows, tokenizer, meta, bar)
        for rank in range(ranks.world_size):
            ranks.share(parts, *(path.name for path in _part(parts, rank)), source=rank)
        if ranks.is_first:
            with writing(folder), complete_folder(folder) as temporary:
                _join(temporary, [_part(parts, rank) for rank in range(ranks.world_size)], meta)
        ranks.barrier()
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _part(folder: Path, rank: int) -> tuple[Path, Path]:
    return folder / f"{rank}-ids.bin", folder / f"{rank}-lengths.bin"


def _tokenize_part(
    part: tuple[Path, Path],
    texts: Sequence[str],
    rows: slice,
    tokenizer: PreTrainedTokenizerBase,
    meta: dict[str, Any],
    bar: Callable[..., Any],
) -> None:
    """Write the ids of some texts, int32, and their numbers, int64."""
    lengths = np.zeros(rows.stop - rows.start, np.int64)
    with (
        _encoder(tokenizer, meta["max_tokens"]) as encode,
        open(part[0], "wb") as file,
        bar(total=len(lengths)) as progress,
    ):
        for start in range(rows.start, rows.stop, _TEXTS_PER_BATCH):
            stop = min(start + _TEXTS_PER_BATCH, rows.stop)
            batch = list(texts[start:stop])
            if meta["prompt"]:
                batch = [meta["prompt"] + text for text in batch]
            encoded = encode(batch)
            lengths[start - rows.start : stop - rows.start] = np.fromiter(map(len, encoded), np.int64)
            # Not `tofile`, which reports no error if the end of the file is not written.
            file.write(np.fromiter(chain.from_iterable(encoded), np.int32).data)
            progress.update(len(batch))
    part[1].write_bytes(lengths.data)


def _join(folder: Path, parts: list[tuple[Path, Path]], meta: dict[str, Any]) -> None:
    """Write the store of all parts; the first one's ids are moved, the others' are appended."""
    ids, offsets = folder / "ids.bin", folder / "offsets.bin"
    lengths = np.concatenate([np.fromfile(lengths, np.int64) for _, lengths in parts])
    os.replace(parts[0][0], ids)
    with open(ids, "ab") as file:
        for path, _ in parts[1:]:
            with open(path, "rb") as part:
                shutil.copyfileobj(part, file, 1 << 24)
    offsets.write_bytes(np.append(0, np.cumsum(lengths)).astype(np.int64).data)
    meta = meta | {"texts": len(lengths), "tokens": int(lengths.sum())}
    write_note(folder / "meta.json", meta, [ids, offsets])


@contextmanager
def _encoder(
    tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> Iterator[Callable[[list[str]], list[list[int]]]]:
    """A function from texts to their ids, truncated and without special tokens."""
    backend = backend_of(tokenizer)
    if backend is None:
        options = {
            "add_special_tokens": False,
            "truncation": True,
            "max_length": max_tokens,
            "verbose": False,
        }
        yield lambda texts: tokenizer(texts, **options)["input_ids"]
        return
    truncation, padding, split = backend.truncation, backend.padding, backend.encode_special_tokens
    try:
        backend.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
        backend.no_padding()
        backend.encode_special_tokens = getattr(tokenizer, "split_special_tokens", False)
        yield lambda texts: [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
    finally:
        if truncation is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
        backend.encode_special_tokens = split
