"""A stand-in for the Hugging Face hub on loopback: repositories are folders, downloads and commits are real."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 39 + "1"


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Path]
    seen: list[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        path = self.path.split("?")[0].strip("/")
        self.seen.append(f"{self.command} {path} {self.headers.get('Authorization', 'no token')}")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name, _, action = path.removeprefix("api/datasets/").rpartition("/")[0].rpartition("/")
        if path == "api/repos/create":
            given = json.loads(content)
            private = given.get("visibility") == "private" or given.get("private")  # as newer clients say, or older
            self.seen.append(f"private: {bool(private)}")
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            answer = {"name": name, "id": name, "url": f"http://{self.headers['Host']}/datasets/{name}"}
        elif action == "preupload":
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(content)["files"]]
            answer = {"files": [{**each, "shouldIgnore": False, "oid": None} for each in files]}
        elif action == "commit":
            for line in map(json.loads, content.splitlines()):
                file = self.repositories[name] / line["value"].get("path", "")
                if line["key"] == "deletedFile":
                    file.unlink()
                elif line["key"] == "file":
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(line["value"]["content"]))
            url = f"http://{self.headers['Host']}/datasets/{name}/commit/{COMMIT}"
            answer = {"commitUrl": url, "commitOid": COMMIT, "success": True}
        elif path == "api/validate-yaml":
            answer = {}
        else:
            return self._missing("RepoNotFound")
        self._send(json.dumps(answer).encode(), "application/json", body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        self.seen.append(f"{self.command} {path}")
        for kind in ("api/models/", "api/datasets/"):
            if path.startswith(kind):
                return self._info(path.removeprefix(kind), body)
        path = path.removeprefix("datasets/")
        for name, folder in self.repositories.items():
            prefix = f"{name}/resolve/"
            if path.startswith(prefix):
                file = folder / path.removeprefix(prefix).split("/", 1)[1]
                return self._file(file, body) if file.is_file() else self._missing("EntryNotFound")
        return self._missing("RepoNotFound")

    def _info(self, path: str, body: bool) -> None:
        for name, folder in self.repositories.items():
            if path == name or path.startswith((f"{name}/revision/", f"{name}/tree/")):
                files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
                if "/tree/" in path:
                    listing = [
                        {"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": "0"} for f in files
                    ]
                    return self._send(json.dumps(listing).encode(), "application/json", body)
                info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files], "tags": []}
                return self._send(json.dumps(info).encode(), "application/json", body)
        return self._missing("RepoNotFound")

    def _file(self, file: Path, body: bool) -> None:
        data = file.read_bytes()
        etag = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        self._send(data, "application/octet-stream", body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, data: bytes, kind: str, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextlib.contextmanager
def stand_in_hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve ``repositories`` (id to folder); yields the endpoint and the growing list of requests."""
    seen: list[str] = []
    handler = type("Handler", (_Handler,), {"repositories": repositories, "seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
