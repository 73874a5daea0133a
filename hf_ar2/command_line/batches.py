"""Concurrent searches: all waiting requests are answered by one pass of the models."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from starlette.exceptions import HTTPException

from hf_ar2.search.system import Hit


class Batches:
    """Searches in one thread. Requests that arrive during a search are then searched together if their k is equal."""

    def __init__(self, search_many: Callable[[Sequence[str], int], list[list[Hit]]]) -> None:
        self._search_many = search_many
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[tuple[str, int, asyncio.Future[list[Hit]]]] = []
        self._work: asyncio.Task[None] | None = None

    async def search(self, query: str, k: int) -> list[Hit]:
        """The k best hits. Where the search fails, its traceback is printed and an HTTPException raised."""
        loop = asyncio.get_running_loop()
        found = loop.create_future()
        self._waiting.append((query, k, found))
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._search_all())
        return await found

    async def _search_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            k = self._waiting[0][1]
            batch = [(query, found) for query, its_k, found in self._waiting if its_k == k]
            self._waiting = [waiting for waiting in self._waiting if waiting[1] != k]
            queries = [query for query, _ in batch]
            results: list[list[Hit]] | None = None
            try:
                results = await loop.run_in_executor(self._thread, self._search_many, queries, k)
            except Exception:
                traceback.print_exc()
            for place, (_, found) in enumerate(batch):
                if found.done():  # cancelled, at the end of the server
                    continue
                if results is None:
                    message = "the search failed; see the terminal of the server"
                    found.set_exception(HTTPException(500, message))
                else:
                    found.set_result(results[place])
