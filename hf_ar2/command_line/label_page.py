"""`hf-ar2 label --browser`: the same questions on a web page of this machine."""

from __future__ import annotations

import html
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from threading import Lock
from urllib.parse import parse_qs, urlsplit

from hf_ar2.command_line.labelling import Labelling
from hf_ar2.command_line.serve import PageHandler, SearchServer, html_page
from hf_ar2.search.system import Hit

HOST = "127.0.0.1"
_MOST_BYTES = 1 << 16
_STYLE = """label { display: block; margin: 1rem 0; padding: .5rem .75rem }
label { border: 1px solid #ccc; border-radius: .25rem }
label:has(:checked) { border-color: #06c; background: #f0f6ff }
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


class LabelServer(SearchServer):
    """Listens on the loopback address from its construction on, and asks once `ask` is called.

    Changes need the token in the page, so that other web pages cannot make any.

    Raises:
        ValueError: the port is in use or invalid.
    """

    labelling: Labelling
    run_folder: str

    def __init__(self, port: int) -> None:
        super().__init__(HOST, port, _Handler)
        self.token = secrets.token_urlsafe(32)
        self.one_at_a_time = Lock()

    def ask(self, labelling: Labelling, run: str) -> None:
        """Serve the page until Ctrl-C."""
        self.labelling, self.run_folder = labelling, run
        print(f"Judge at {self.url} (stop with Ctrl-C; judgments are kept)", flush=True)
        self.run()

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


class _Handler(PageHandler):
    server: LabelServer

    def do_GET(self) -> None:
        """The page."""
        if not self._from_here():
            self._reject(HTTPStatus.FORBIDDEN)
        elif urlsplit(self.path).path != "/":
            self._reject(HTTPStatus.NOT_FOUND)
        else:
            with self.server.one_at_a_time:
                text = self.server.page()
            self.send(HTTPStatus.OK, "text/html; charset=utf-8", text)

    def do_POST(self) -> None:
        """Carry out the page's form, and show the page again."""
        length = self.headers.get("Content-Length", "")
        if not self._from_here():
            self._reject(HTTPStatus.FORBIDDEN)
            return
        if not length.isdigit() or int(length) > _MOST_BYTES:
            self._reject(HTTPStatus.BAD_REQUEST)
            return
        form = parse_qs(self.rfile.read(int(length)).decode("utf-8", "replace"), keep_blank_values=True)
        given = {name: values[-1] for name, values in form.items()}
        if not secrets.compare_digest(given.get("token", "").encode(), self.server.token.encode()):
            self._reject(HTTPStatus.FORBIDDEN)
            return
        with self.server.one_at_a_time:
            self.server.act(given.get("action", ""), given.get("question", ""), form.get("relevant", []))
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _from_here(self) -> bool:
        """Whether the request names this server as its host; a page of another host that leads here does not."""
        port = self.server.server_address[1]
        hosts = [f"{HOST}:{port}", f"localhost:{port}"]
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in hosts and origin in (None, *(f"http://{host}" for host in hosts))

    def _reject(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self.answer(status, {"error": f"{status.phrase}: open {self.server.url}"})


def passages_html(hits: Sequence[Hit]) -> str:
    """Passages with a checkbox each, every text escaped."""
    return "\n".join(
        _PASSAGE.format(
            place=place, title=html.escape(hit.title or hit.passage_id), text=html.escape(hit.text)
        )
        for place, hit in enumerate(hits)
    )
