"""Questions written by an OpenAI-compatible endpoint: POST URL/chat/completions, with the standard library."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import numpy as np

from hf_ar2.generation.prompts import CHAT, filled

KEY = "OPENAI_API_KEY"
_AT_ONCE = 8
_TIMEOUT = 300
_MOST_BYTES = 1 << 20
_AGAIN = (408, 409, 429, 500, 502, 503, 504)


class EndpointWriter:
    """Writes through an endpoint: one reply at temperature 0, or several with a seed each.

    The key is read from the environment variable `OPENAI_API_KEY`, kept in memory alone, and sent over https or to
    this machine only.

    Args:
        url: such as `http://127.0.0.1:8000/v1`.
        model: what the endpoint calls its model.
        count: replies per passage.
        prompt: with `{passage}` in it; None takes the one for chat models.
        seed: of the sampling, where the endpoint takes one.
        waits: seconds to wait before each further try.

    Attributes:
        name: the model's name.
        prompt: what it is asked.

    Raises:
        ValueError: the URL is not one of http or https, or has a password in it.
    """

    def __init__(
        self,
        url: str,
        model: str,
        count: int = 1,
        prompt: str | None = None,
        seed: int = 42,
        waits: Sequence[float] = (1, 5, 20),
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"endpoint {url!r}: expected a URL such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"endpoint at {parts.hostname}: found a password or a query in its URL; expected the key in the "
                f"environment variable {KEY}"
            )
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.name, self.count, self.prompt, self.seed, self.waits = model, count, prompt or CHAT, seed, waits
        local = _is_local(parts.hostname)
        self._key = os.environ.get(KEY, "").strip()
        # A key that anybody on the way could read is not sent.
        self.key_kept_back = bool(self._key) and parts.scheme == "http" and not local
        self._opener = build_opener(_NoRedirect, *([ProxyHandler({})] if local else []))

    def batches(self, passages: Sequence[str]) -> list[np.ndarray]:
        """Places of the passages that are asked about at once, in their order."""
        return np.array_split(np.arange(len(passages)), range(_AT_ONCE, len(passages), _AT_ONCE))

    def write(self, batch: int, passages: Sequence[str]) -> list[list[str]]:
        """The replies for the passages of a batch.

        Raises:
            ValueError: the endpoint cannot be reached or answers with an error, each several times.
        """
        asked = [(passage, number) for passage in passages for number in range(self.count)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            replies = list(pool.map(lambda one: self._reply(*one), asked))
        return [replies[start : start + self.count] for start in range(0, len(replies), self.count)]

    def close(self) -> None:
        """Nothing is held."""

    def _reply(self, passage: str, number: int) -> str:
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": filled(self.prompt, passage)}],
            "max_tokens": 256,
            "temperature": 0.0 if self.count == 1 else 0.8,
            "seed": self.seed + number,
        }
        for wait in (*self.waits, None):
            try:
                return _content(self._post(json.dumps(body).encode()))
            except HTTPError as error:
                with error:
                    said = error.read(500).decode("utf-8", "replace")
                problem = f"answered {error.code} {error.reason}: {' '.join(said.split())}"
                if error.code not in _AGAIN:
                    raise ValueError(self._failed(problem, error.code)) from None
            except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                problem = (
                    f"cannot be reached: {getattr(error, 'reason', None) or error or type(error).__name__}"
                )
            except ValueError as error:
                problem = f"answered with something else than a completion: {error}"
            if wait is None:
                raise ValueError(self._failed(problem))
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key and not self.key_kept_back:
            headers["Authorization"] = f"Bearer {self._key}"
        with self._opener.open(Request(self.url, body, headers), timeout=_TIMEOUT) as reply:
            return bytes(reply.read(_MOST_BYTES))

    def _failed(self, problem: str, code: int = 0) -> str:
        advice = "Start it, or correct the URL"
        if code in (401, 403):
            advice = f"Set {KEY} to its key"
            if self.key_kept_back:
                advice = f"{KEY} is set and was not sent, since the URL is neither https nor of this machine"
        elif code:
            advice = "Correct the URL or --generate-model"
        if self._key:
            problem = problem.replace(self._key, "***")  # some servers repeat it
        return f"endpoint {self.url} {problem}. {advice}; what was written is kept, the same command goes on"


class _NoRedirect(HTTPRedirectHandler):
    """The key goes to the host that was named and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _content(answer: bytes) -> str:
    """The text of a completion.

    Raises:
        ValueError: it has none.
    """
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValueError(repr(answer[:200].decode("utf-8", "replace"))) from None
    return content if isinstance(content, str) else ""


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
