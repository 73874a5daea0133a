"""`hf-ar2 label --browser`: the same questions on a page that this machine alone can reach."""

from __future__ import annotations

import html
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from threading import Lock
from urllib.parse import parse_qs, urlsplit

from hf_ar2.command_line.labelling import Labelling
from hf_ar2.command_line.serve import PageHandler, SearchServer
from hf_ar2.search.system import Hit

HOST = "127.0.0.1"
_MOST_BYTES = 1 << 16
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222 }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere }}
label {{ display: block; margin: 1rem 0; padding: .5rem .75rem; border: 1px solid #ccc; border-radius: .25rem }}
label:has(:checked) {{ border-color: #06c; background: #f0f6ff }}
button {{ padding: .5rem 1rem; font: inherit }}
.note {{ color: #666; font-size: .875rem }}
.text {{ display: block; white-space: pre-wrap; overflow-wrap: anywhere }}
</style>
</head>
<body>
{content}
</body>
</html>
"""
_QUESTION = """<p class="note">{place}</p>
<h1 dir="auto">{question}</h1>
<form action="/" method="post">
<input type="hidden" name="token" value="{token}">
<input type="hidden" name="question" value="{id}">
<p>Which of these answer it? Mark none where none does.</p>
{passages}
<button name="action" value="judge">Save and go on</button>
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
<p class="note">Ctrl-C in the terminal ends this page.</p>"""


class LabelServer(SearchServer):
    """Listens on the loopback address from the beginning, and asks once `ask` is called.

    What changes something needs the token that is in the page, so that no other page can send it.

    Raises:
        ValueError: the port is taken or no port.
    """

    labelling: Labelling
    run: str

    def __init__(self, port: int) -> None:
        super().__init__(HOST, port, _Handler)
        self.token = secrets.token_urlsafe(32)
        self.one_at_a_time = Lock()

    def ask(self, labelling: Labelling, run: str) -> None:
        """Serve the page until Ctrl-C."""
        self.labelling, self.run = labelling, run
        print(f"Judge at {self.url} (Ctrl-C ends it; judgments are kept)", flush=True)
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            print()

    def page(self) -> str:
        """The question that is asked about, or the end."""
        labelling = self.labelling
        id = labelling.current
        if id is None:
            content = _END.format(summary=html.escape(labelling.summary(self.run)), token=self.token)
        else:
            content = _QUESTION.format(
                place=f"{labelling.number} of {len(labelling.questions)}",
                question=html.escape(labelling.questions[id]),
                token=self.token,
                id=html.escape(id),
                passages=passages_html(labelling.shown),
            )
        return _PAGE.format(title=html.escape(labelling.file.name), content=content)

    def act(self, action: str, question: str, relevant: Sequence[str]) -> None:
        """Do what a form says, unless it is about another question than is asked now: a page of before."""
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
            self._refuse(HTTPStatus.FORBIDDEN)
        elif urlsplit(self.path).path != "/":
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            with self.server.one_at_a_time:
                text = self.server.page()
            self.send(HTTPStatus.OK, "text/html; charset=utf-8", text)

    def do_POST(self) -> None:
        """Do what the page's form says, and show the page again."""
        length = self.headers.get("Content-Length", "")
        if not self._from_here():
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        if not length.isdigit() or int(length) > _MOST_BYTES:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        form = parse_qs(self.rfile.read(int(length)).decode("utf-8", "replace"), keep_blank_values=True)
        given = {name: values[-1] for name, values in form.items()}
        if not secrets.compare_digest(given.get("token", "").encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        with self.server.one_at_a_time:
            self.server.act(given.get("action", ""), given.get("question", ""), form.get("relevant", []))
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _from_here(self) -> bool:
        """Whether the request names this server, as a page of another name that leads here would not."""
        port = self.server.server_address[1]
        hosts = [f"{HOST}:{port}", f"localhost:{port}"]
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in hosts and origin in (None, *(f"http://{host}" for host in hosts))

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self.answer(status, {"error": f"{status.phrase}: open {self.server.url}"})


def passages_html(hits: Sequence[Hit]) -> str:
    """Passages with a box to mark each, every text escaped."""
    return "\n".join(
        _PASSAGE.format(
            place=place, title=html.escape(hit.title or hit.passage_id), text=html.escape(hit.text)
        )
        for place, hit in enumerate(hits)
    )
