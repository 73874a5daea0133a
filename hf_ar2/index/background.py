"""A corpus encoded on another device by a process of its own, while this one trains."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from sentence_transformers import SentenceTransformer

from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.shards import encode_file


@dataclass(frozen=True)
class Corpus:
    """The texts that are encoded, and where their embeddings go.

    Attributes:
        builder, store: make the inputs of N texts.
        parts: files, and the rows of the texts whose embeddings they get.
        dtype: of the embeddings, "float32" or "float16".
    """

    builder: InputBuilder
    store: TokenStore
    parts: list[tuple[Path, slice]]
    dtype: str


class BackgroundEncoder:
    """A process that encodes a corpus again and again, with the weights that it is sent.

    It is a program of its own, so that a script that starts it needs no `if __name__ == "__main__"`. It ends when this
    process closes it or ends, in whatever way. Errors of it, and its death, are raised here by the next call.

    Args:
        retriever: a copy of it encodes. Its structure is sent once, its weights by each `begin`.
        corpus: what is encoded.
        encoders: with the device of the other process. It uses as many threads of the CPU as this one.

    Raises:
        ValueError: the retriever cannot be pickled.
        RuntimeError: the other process cannot use the retriever or the device.
    """

    def __init__(self, retriever: SentenceTransformer, corpus: Corpus, encoders: Encoders) -> None:
        self.device = encoders.device
        try:
            setup = _to_bytes((retriever, corpus, encoders, torch.get_num_threads(), _tf32()))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"the retriever cannot be sent to the process that encodes on {self.device}: {error}"
            ) from error
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then closes that one
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._expected = 0
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._send(setup)
            while not self.finished(wait=60):
                pass
        except BaseException:
            self.close()
            raise

    def begin(self, weights: dict[str, torch.Tensor]) -> None:
        """Encode the corpus with these weights, a state dict of the retriever; returns at once.

        Raises:
            RuntimeError: the other process has failed or ended.
        """
        self._send(_to_bytes(weights))

    def finished(self, wait: float = 0) -> bool:
        """Whether the files hold the embeddings by the weights of the last `begin`; within so many seconds, at most.

        Raises:
            RuntimeError: the other process has failed or ended.
        """
        try:
            failed = self._answers.get(timeout=wait) if wait else self._answers.get_nowait()
        except queue.Empty:
            return self._expected == 0
        if failed is not None:
            raise RuntimeError(
                f"the process that encodes the corpus on {self.device} {failed}. Training ends here, and can be "
                "resumed from its last checkpoint"
            )
        self._expected -= 1
        return self._expected == 0

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # what it did not read
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _send(self, content: bytes) -> None:
        assert self._process.stdin is not None
        self._expected += 1
        try:
            pickle.dump(content, self._process.stdin)
            self._process.stdin.flush()
        except OSError:
            self.finished(wait=60)  # says why
            raise

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for answer in _objects(answers):
                self._answers.put(answer)
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._answers.put(how)


def serve() -> None:
    """Be the other process: read a corpus and weights from standard input, and answer on standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(waiting,), daemon=True).start()
    try:
        retriever, corpus, encoders, threads, tf32 = _from_bytes(waiting.get())
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.fp32_precision = tf32
        if encoders.device.type == "cuda" and encoders.device.index is not None:
            torch.cuda.set_device(encoders.device)
        retriever.to(encoders.device).eval()
        while True:
            pickle.dump(None, answers)
            answers.flush()
            retriever.load_state_dict(_from_bytes(waiting.get()))
            _encode(retriever, corpus, encoders)
    except Exception as error:
        pickle.dump(f"failed: {type(error).__name__}: {error}", answers)
        answers.flush()


def _read(waiting: queue.SimpleQueue[bytes]) -> None:
    """Read what the other process sends, also while the corpus is encoded: its end is the end of this process."""
    for content in _objects(sys.stdin.buffer):
        waiting.put(content)
    os._exit(0)


def _encode(retriever: SentenceTransformer, corpus: Corpus, encoders: Encoders) -> None:
    encode, dim = encoders.embedder(retriever, "document"), retriever.get_embedding_dimension()
    for path, rows in corpus.parts:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"budget": encoders.budget, "device": encoders.device, "show_progress": False}
        encode_file(path, corpus.dtype, dim or 0, rows, encode, corpus.builder, corpus.store, **options)


def _objects(file: IO[bytes]) -> Iterator[Any]:
    """What is pickled in a pipe, until the other side closes it."""
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            yield pickle.load(file)


def _to_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _from_bytes(content: bytes) -> Any:
    # From the process that started this one: code in it is as safe as that process.
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def _tf32() -> str:
    """The precision of float32 products on a GPU, as `transformers.TrainingArguments.tf32` set it."""
    return str(torch.backends.cuda.matmul.fp32_precision)
