"""A stand-in for the Hub on the loopback address, as a process of its own: repositories in memory, one user, `tester`.

`python hub_stub.py` prints its port. It answers the calls that huggingface_hub made when this was written, without the
real server's checks. `POST /_break {"times": n}` cuts the next n commits off in the middle of the upload,
and with `"at": "preupload", "of": "-ranker"` it refuses the next n times to say how files of such a repository go;
`GET /_commits` lists what was committed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_dummy"
API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(preupload|commit|revision|tree|branch)/?([^/]+)?)?(.*)"
)
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Repository:
    """The files of a repository and its commits, newest last."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((sorted(self.files), self.commits)).encode()).hexdigest()


def blob(content: bytes) -> str:
    """git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """One request. Class attributes are the server's state."""

    protocol_version = "HTTP/1.1"
    repositories: dict[tuple[str, str], Repository] = {}  # noqa: RUF012
    breaks = 0
    broken = ("commit", "")

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        match = API.fullmatch(path)
        if match and match[3] == Hub.broken[0] and match[2].endswith(Hub.broken[1]) and Hub.breaks > 0:
            Hub.breaks -= 1
            if match[3] == "preupload":
                self.body()
                self.refuse(400, "", "The store is closed.")
                return
            self.rfile.read(100)
            self.close_connection = True
            self.connection.close()
            return
        body = self.body()
        if path == "/_break":
            asked = json.loads(body)
            Hub.breaks, Hub.broken = asked["times"], (asked.get("at", "commit"), asked.get("of", ""))
            self.answer({})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "", "Invalid username or password.")
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif match is None or (match[1], match[2]) not in self.repositories:
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif not match[2].startswith("tester/"):
            self.refuse(403, "", "You are not allowed to write here.")
        elif match[3] == "preupload":
            files = self.repositories[match[1], match[2]].files
            wanted = [entry["path"] for entry in json.loads(body)["files"]]
            known = {place: blob(files[place]) for place in wanted if place in files}
            told = [
                {"path": place, "uploadMode": "regular", "shouldIgnore": False, "oid": known.get(place)}
                for place in wanted
            ]
            self.answer({"files": told})
        elif match[3] == "commit":
            self.commit(match[1], match[2], body)
        else:
            self.answer({})

    def create(self, asked: dict[str, Any]) -> None:
        kind = f"{asked.get('type') or 'model'}s"
        owner = asked.get("organization") or "tester"
        id = f"{owner}/{asked['name']}"
        place = {"models": "", "datasets": "datasets/"}[kind]
        if owner not in ("tester", "readonly"):
            self.refuse(403, "", f"You don't have the rights to create a model under the namespace {owner!r}")
        elif (kind, id) in self.repositories:
            self.answer({"error": "exists", "url": f"{self.url}/{place}{id}"}, 409)
        else:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.repositories[kind, id] = Repository(private)
            self.answer({"url": f"{self.url}/{place}{id}", "id": id, "name": id})

    def commit(self, kind: str, id: str, body: bytes) -> None:
        repository = self.repositories[kind, id]
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                repository.commits.append(entry["value"]["summary"])
            elif entry["key"] == "file":
                repository.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del repository.files[entry["value"]["path"]]
        place = {"models": "", "datasets": "datasets/"}[kind]
        url = f"{self.url}/{place}{id}/commit/{repository.sha}"
        self.answer({"success": True, "commitOid": repository.sha, "commitUrl": url, "hookOutput": ""})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/_commits":
            self.answer({f"{kind}/{id}": found.commits for (kind, id), found in self.repositories.items()})
        elif match := RESOLVE.fullmatch(path):
            found = self.repositories.get(("datasets" if match[1] else "models", match[2]))
            content = found.files.get(match[4]) if found else None
            if found is None:
                self.refuse(404, "RepoNotFound", "Repository not found")
            elif content is None:
                self.refuse(404, "EntryNotFound", "Entry not found")
            else:
                self.answer(content, ETag=f'"{blob(content)}"', X_Repo_Commit=found.sha)
        elif (match := API.fullmatch(path)) and (match[1], match[2]) in self.repositories:
            self.tell(self.repositories[match[1], match[2]], match[2], match[3])
        else:
            self.refuse(404, "RepoNotFound", "Repository not found")

    do_HEAD = do_GET

    def tell(self, repository: Repository, id: str, what: str | None) -> None:
        if what == "tree":
            self.answer(
                [
                    {"type": "file", "path": place, "size": len(content), "oid": blob(content)}
                    for place, content in sorted(repository.files.items())
                ]
            )
        else:
            siblings = [{"rfilename": place} for place in sorted(repository.files)]
            about = {"_id": id, "id": id, "sha": repository.sha, "private": repository.private}
            self.answer({**about, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(server.server_port, flush=True)
    server.serve_forever()
