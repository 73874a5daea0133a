"""`hf-ar2 label --browser`: the same questions on a web page of this machine."""

from __future__ import annotations

import asyncio
import html
import secrets
from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from hf_ar2.command_line.labelling import Labelling
from hf_ar2.command_line.web import WebServer, html_page
from hf_ar2.search.system import Hit

_MOST_BYTES = 1 << 16
_STYLE = """label { display: block; margin: 1rem 0; padding: .5rem .75rem }
label { border: 1px solid var(--line); border-radius: .25rem }
label:has(:checked) { border-color: var(--link); background: var(--chosen) }
.text { display: block }
"""
_QUESTION = """<p class="note">{place}</p>
<h1 dir="auto">{question}</h1>
<form action="/" method="post">
<input type="hidden" name="token" value="{token}">
<input type="hidden" name="question" value="{id}">
<p>Which of these answer it? Mark none if none does.</p>
{passages}
<button name="action" value="judge">Save and continue</button>
<button name="action" value="skip">Skip</button>
<button name="action" value="undo">Undo the last</button>
</form>"""
_PASSAGE = """<label><input type="checkbox" name="relevant" value="{place}">
<strong dir="auto">{title}</strong>
<span class="text" dir="auto">{text}</span></label>"""
_END = """<h1>That was the last question</h1>
<pre class="text">{summary}</pre>
<form action="/" method="post">
<input type="hidden" name="token" value="{token}">
<input type="hidden" name="question" value="">
<button name="action" value="undo">Undo the last</button>
</form>
<p class="note">Ctrl-C in the terminal stops this server.</p>"""


class LabelServer(WebServer):
    """Listens on the loopback address once constructed, and asks once `ask` is called.

    Every form needs the token in the page, so that other web pages cannot send one.
    """

    labelling: Labelling
    run_folder: str

    def __init__(self, port: int) -> None:
        routes = [Route("/", self.show), Route("/", self.answer, methods=["POST"])]
        super().__init__("127.0.0.1", port, routes)
        self.token = secrets.token_urlsafe(32)
        self.one_at_a_time = asyncio.Lock()

    def ask(self, labelling: Labelling, run: str) -> None:
        """Serve the page until Ctrl-C."""
        self.labelling, self.run_folder = labelling, run
        print(f"Judge at {self.url} (stop with Ctrl-C; judgments are kept)", flush=True)
        self.run()

    async def show(self, request: Request) -> Response:
        """The page."""
        async with self.one_at_a_time:
            return HTMLResponse(await run_in_threadpool(self.page))

    async def answer(self, request: Request) -> Response:
        """Carry out the page's form, and show the page again."""
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > _MOST_BYTES:
            raise HTTPException(400, f"expected the form of the page: open {self.url}")
        form = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
        given = {name: values[-1] for name, values in form.items()}
        from_here = request.headers.get("origin") in (None, f"http://{request.headers['host']}")
        right = secrets.compare_digest(given.get("token", "").encode(), self.token.encode())
        if not (from_here and right):
            raise HTTPException(403, f"this form was not sent from this page: open {self.url}")
        acted = given.get("action", ""), given.get("question", ""), form.get("relevant", [])
        async with self.one_at_a_time:
            await run_in_threadpool(self.act, *acted)
        return RedirectResponse("/", 303)

    def page(self) -> str:
        """The current question, or the summary at the end."""
        labelling = self.labelling
        id = labelling.current
        if id is None:
            content = _END.format(summary=html.escape(labelling.summary(self.run_folder)), token=self.token)
        else:
            content = _QUESTION.format(
                place=f"{labelling.number} of {len(labelling.questions)}",
                question=html.escape(labelling.questions[id]),
                token=self.token,
                id=html.escape(id),
                passages=passages_html(labelling.shown),
            )
        return html_page(labelling.file.name, _STYLE, content)

    def act(self, action: str, question: str, relevant: Sequence[str]) -> None:
        """Carry out a form, unless it is about another question than the current one (an old page)."""
        labelling = self.labelling
        if question != (labelling.current or ""):
            return
        if action == "undo":
            labelling.undo()
        elif question and action == "skip":
            labelling.skip()
        elif question and action == "judge":
            shown = len(labelling.shown)
            labelling.judge([int(place) for place in relevant if place.isascii() and place.isdigit()][:shown])


def passages_html(hits: Sequence[Hit]) -> str:
    """Passages with a checkbox each, every text escaped."""
    return "\n".join(
        _PASSAGE.format(
            place=place, title=html.escape(hit.title or hit.passage_id), text=html.escape(hit.text)
        )
        for place, hit in enumerate(hits)
    )
