"""Questions from an OpenAI-compatible endpoint (POST URL/chat/completions), with the standard library."""

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

from hf_ar2.generation.prompts import CHAT, fill_prompt

KEY = "OPENAI_API_KEY"
_PARALLEL_REQUESTS = 8
_TIMEOUT = 300
_MAX_BYTES = 1 << 20
_RETRY_CODES = (408, 409, 429, 500, 502, 503, 504)


class EndpointWriter:
    """Writes through an endpoint: one reply at temperature 0, or several with a seed each.

    The key is read from the environment variable `OPENAI_API_KEY`. It is never written to disk, and sent only over
    https or to this machine.

    Args:
        url: such as `http://127.0.0.1:8000/v1`, without a password or a query.
        model: its name at the endpoint.
        count, prompt, seed: as of `ModelWriter`; not all endpoints read the seed.
        waits: seconds to wait before each retry.
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
        # The key is not sent over a connection that others can read.
        self.key_withheld = bool(self._key) and parts.scheme == "http" and not local
        self._opener = build_opener(_NoRedirect, *([ProxyHandler({})] if local else []))

    def batches(self, passages: Sequence[str]) -> list[np.ndarray]:
        """Indices of the passages that are sent in parallel, in order."""
        starts = range(_PARALLEL_REQUESTS, len(passages), _PARALLEL_REQUESTS)
        return np.array_split(np.arange(len(passages)), starts)

    def write(self, batch: int, passages: Sequence[str]) -> list[list[str]]:
        """The replies for the passages of a batch; ValueError if retries fail too."""
        requests = [(passage, number) for passage in passages for number in range(self.count)]
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            replies = list(pool.map(lambda one: self._reply(*one), requests))
        return [replies[start : start + self.count] for start in range(0, len(replies), self.count)]

    def _reply(self, passage: str, number: int) -> str:
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": fill_prompt(self.prompt, passage)}],
            "max_tokens": 256,
            "temperature": 0.0 if self.count == 1 else 0.8,
            "seed": self.seed + number,
        }
        for wait in (*self.waits, None):
            try:
                return _content(self._post(json.dumps(body).encode()))
            except HTTPError as error:
                with error:
                    message = error.read(500).decode("utf-8", "replace")
                problem = f"answered {error.code} {error.reason}: {' '.join(message.split())}"
                if error.code not in _RETRY_CODES:
                    raise ValueError(self._failed(problem, error.code)) from None
            except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error or type(error).__name__
                problem = f"cannot be reached: {reason}"
            except ValueError as error:
                problem = f"did not return a completion: {error}"
            if wait is None:
                raise ValueError(self._failed(problem))
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key and not self.key_withheld:
            headers["Authorization"] = f"Bearer {self._key}"
        with self._opener.open(Request(self.url, body, headers), timeout=_TIMEOUT) as reply:
            return bytes(reply.read(_MAX_BYTES))

    def _failed(self, problem: str, code: int = 0) -> str:
        advice = "Correct the URL or --generate-model" if code else "Start it, or correct the URL"
        if code in (401, 403):
            withheld = f"{KEY} is set but was not sent, because the URL is neither https nor of this machine"
            advice = withheld if self.key_withheld else f"Set {KEY} to its key"
        if self._key:
            problem = problem.replace(self._key, "***")  # some servers repeat the key
        return f"endpoint {self.url} {problem}. {advice}; the replies so far are kept, run the same command to continue"


class _NoRedirect(HTTPRedirectHandler):
    """Rejects redirects, so that the key is sent only to the host in the URL."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _content(answer: bytes) -> str:
    """The text of a completion; ValueError if this is not one."""
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
