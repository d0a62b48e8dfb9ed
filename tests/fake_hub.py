"""A Hugging Face Hub on the loopback interface: what `huggingface_hub` asks for, and files in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class FakeHub(ThreadingHTTPServer):
    """Repositories by name, each a dict of files; `private` has their visibility."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.downloads = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *args):
        pass

    def _answer(self, content=None, status=200, headers=None, body=b"{}"):
        data = body if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code):
        self._answer(status=404, headers={"X-Error-Code": code})

    def _read(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            repository, name = match.groups()
            files = self.server.repositories.get(repository)
            if files is None:
                return self._missing("RepoNotFound")
            if name not in files:
                return self._missing("EntryNotFound")
            self.server.downloads += self.command == "GET"
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            return self._answer(headers={"ETag": etag, "X-Repo-Commit": COMMIT}, body=files[name])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            repository, rest = match.groups()
            files = self.server.repositories.get(repository)
            if files is None:
                return self._missing("RepoNotFound")
            if rest and rest.startswith("/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    for name, data in files.items()
                ]
                return self._answer(tree)
            siblings = [{"rfilename": name} for name in files]
            private = self.server.private[repository]
            return self._answer(
                {"id": repository, "sha": COMMIT, "private": private, "siblings": siblings, "tags": []}
            )
        return self._missing("EntryNotFound")

    def do_POST(self):
        data, path = self._read(), self.path.split("?")[0]
        if path == "/api/repos/create":
            given = json.loads(data)
            repository = f"{given['organization']}/{given['name']}"
            if repository in self.server.repositories:
                return self._answer({"url": f"{self.server.url}/{repository}"}, status=409)
            self.server.repositories[repository] = {}
            self.server.private[repository] = bool(given.get("private"))
            return self._answer({"url": f"{self.server.url}/{repository}"})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
            names = [file["path"] for file in json.loads(data)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            return self._answer({"files": [{"path": name, **plain} for name in names]})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.+", path):
            for line in data.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[match[1]][entry["value"]["path"]] = content
            url = f"{self.server.url}/{match[1]}/commit/{COMMIT}"
            return self._answer({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})
        return self._missing("EntryNotFound")
