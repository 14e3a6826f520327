"""A stand-in of the Hugging Face Hub on this machine: repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class StandIn:
    """Serves what push and pull ask for. `commits`: of each repository, the files by name."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.tokens: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def answer_json(self, value: object) -> None:
                self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

            def missing(self, code: str) -> None:
                self.answer(404, b'{"error": "not found"}', X_Error_Code=code)

            def do_POST(self) -> None:
                hub.tokens.add(self.headers.get("Authorization", ""))
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                parts = urlsplit(self.path).path.strip("/").split("/")
                if parts == ["api", "repos", "create"]:
                    asked = json.loads(body)
                    name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                    known = {"url": f"{hub.url}/{name}", "name": name, "id": name}
                    if name in hub.commits:
                        self.answer(409, json.dumps(known).encode())
                        return
                    hub.commits[name] = [{".gitattributes": b""}]
                    hub.private[name] = asked.get("visibility") == "private" or bool(
                        asked.get("private")
                    )
                    self.answer_json(known)
                elif parts == ["api", "validate-yaml"]:
                    self.answer_json({"errors": [], "warnings": []})
                elif parts[4] == "preupload":
                    files = [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in json.loads(body)["files"]
                    ]
                    self.answer_json({"files": files})
                else:
                    name = "/".join(parts[2:4])
                    files = dict(hub.commits[name][-1])
                    for line in map(json.loads, body.splitlines()):
                        path = line["value"].get("path")
                        if line["key"] == "file":
                            files[path] = base64.b64decode(line["value"]["content"])
                        elif line["key"] == "deletedFile":
                            del files[path]
                    hub.commits[name].append(files)
                    sha = hub.sha(name, -1)
                    url = f"{hub.url}/{name}/commit/{sha}"
                    self.answer_json({"commitUrl": url, "commitOid": sha, "success": True})

            def do_GET(self) -> None:
                parts = unquote(urlsplit(self.path).path).strip("/").split("/")
                if parts[0] == "api":
                    name, at = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
                    if name not in hub.commits:
                        self.missing("RepoNotFound")
                        return
                    place = hub.place(name, at)
                    if place is None:
                        self.missing("RevisionNotFound")
                        return
                    files = hub.commits[name][place]
                    if parts[4:5] == ["tree"]:
                        entries = [
                            {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
                            for path, data in files.items()
                        ]
                        self.answer_json(entries)
                        return
                    siblings = [{"rfilename": path} for path in files]
                    sha = hub.sha(name, place)
                    self.answer_json({"id": name, "sha": sha, "siblings": siblings})
                    return
                name, at, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
                place = hub.place(name, at)
                data = None if place is None else hub.commits[name][place].get(path)
                if data is None:
                    self.missing("EntryNotFound")
                    return
                etag = f'"{hashlib.sha1(data).hexdigest()}"'
                self.answer(200, data, ETag=etag, X_Repo_Commit=hub.sha(name, place))

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def sha(self, name: str, place: int) -> str:
        """The name of a commit."""
        at = range(len(self.commits[name]))[place]
        return hashlib.sha1(f"{name} {at}".encode()).hexdigest()

    def place(self, name: str, revision: str) -> int | None:
        """The number of the commit that a revision names, or None."""
        places = range(len(self.commits[name]))
        if revision == "main":
            return places[-1]
        return next((p for p in places if self.sha(name, p) == revision), None)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
