"""A stand-in for the Hugging Face hub on loopback: repositories are folders, downloads and uploads are real."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0" * 39 + "1"


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Path]
    """Of datasets, ``datasets/`` stands before the name."""
    seen: list[str]
    uploads: Path
    """The folder of a repository that is made here."""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        path = self.path.split("?")[0].strip("/")
        token = self.headers.get("Authorization", "no token")
        self.seen.append(f"POST {path} {token}")
        lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
        name, action = path.removeprefix("api/"), ""
        for each in ("/preupload/main", "/commit/main"):
            if name.endswith(each):
                name, action = name.removesuffix(each), each.split("/")[1]
        if path == "api/repos/create":
            wanted = json.loads(lines[0])
            is_private = wanted.get("visibility") == "private" or wanted.get(
                "private"
            )  # as newer clients say, or older
            self.seen.append(f"private: {bool(is_private)}")
            kind = "" if wanted.get("type", "model") == "model" else f"{wanted['type']}s/"
            repository = f"{kind}{wanted['organization']}/{wanted['name']}"
            self.repositories.setdefault(repository, self.uploads).mkdir(exist_ok=True)
            answer: object = {"url": f"http://{self.headers['Host']}/{repository}"}
        elif action == "preupload":
            files = json.loads(lines[0])["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif action == "commit":
            self._commit(self.repositories[name], [json.loads(line) for line in lines])
            answer = {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        else:
            answer = {}
        self._send(json.dumps(answer).encode(), "application/json", True)

    @staticmethod
    def _commit(folder: Path, operations: list[dict[str, Any]]) -> None:
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                (folder / value["path"]).unlink()
            elif operation["key"] == "file":
                (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        self.seen.append(f"{self.command} {path}")
        if path.startswith("api/"):
            return self._info(path.removeprefix("api/").removeprefix("models/"), body)
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
def stand_in_hub(repositories: dict[str, Path], uploads: Path = Path("uploads")) -> Iterator[tuple[str, list[str]]]:
    """Serve ``repositories`` (id to folder) and one that is made here, in ``uploads``.

    Yields the endpoint and the growing list of requests.
    """
    seen: list[str] = []
    handler = type("Handler", (_Handler,), {"repositories": repositories, "seen": seen, "uploads": uploads})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
