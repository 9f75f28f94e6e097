"""A small model hub on the loopback. It answers what huggingface_hub asks the real one, in the real one's words.

The interface is documented at the hub, and was checked against what huggingface_hub 0.26 to 2.4 requests and reads:
the API's answers, the headers of `resolve`, weights on another host, ranges, and how it refuses.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

Files = Mapping[str, Path | bytes]

READER, STRANGER = "hf_reader", "hf_stranger"  # tokens: who accepted the licence of gated models, and who did not
LARGE = (".safetensors", ".bin", ".ckpt")  # stored as Git LFS objects, and served by another host


@dataclass
class Repository:
    """A model: its commits by branch, tag or id, and the files of each commit."""

    gated: bool = False
    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)


class Hub:
    """The server, while the `with` block lasts. `requests` records what was asked for, as (method, path)."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []  # of the downloads that were resumed
        self.faults: dict[str, list[str | int]] = defaultdict(list)  # by file or model: what happens to the next
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port: from now on nobody answers."""
        self.server.shutdown()
        self.server.server_close()

    def push(self, name: str, files: Files, revision: str = "main", gated: bool = False) -> str:
        """Make a commit of a model, and a branch that points at it. Returns: the commit's id."""
        repository = self.repositories.setdefault(name, Repository())
        repository.gated = gated
        commit = hashlib.sha1(f"{name} {revision} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = files
        repository.revisions |= {revision: commit, commit: commit}
        return commit

    def downloads(self) -> list[str]:
        """The files that were downloaded since the last call, sorted. Asking about one does not count."""
        paths = [path for method, path in self.requests if method == "GET" and not path.startswith("/api/")]
        self.requests.clear()
        return sorted(re.sub(r"^(/cdn)?/[^/]+/[^/]+/(resolve/)?[^/]+/", "", path) for path in paths)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
                self.describe(match[1], match[2] or "revision", match[3] or "main")
            elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
                self.send_content(hub.repositories[match[1]].commits[match[2]][match[3]], match[3])
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.resolve(*match.groups())
            else:
                self.refuse(404, None, "Sorry, we can't find the page you are looking for.")

        def find(self, name: str, revision: str) -> tuple[Repository, str] | None:
            """The repository and the commit, or None after having refused."""
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token not in ("", READER, STRANGER):
                self.refuse(401, None, "Invalid credentials in Authorization header")
            elif name not in hub.repositories and token:
                self.refuse(404, "RepoNotFound", "Repository not found")
            elif name not in hub.repositories:  # who is not logged in is not told whether there is one
                self.refuse(401, None, "Invalid username or password.")
            elif revision not in hub.repositories[name].revisions:
                self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            else:
                return hub.repositories[name], hub.repositories[name].revisions[revision]
            return None

        def describe(self, name: str, what: str, revision: str) -> None:
            """`/api/models/…`: open to all, for a gated model too."""
            if hub.faults[name]:
                self.refuse(int(hub.faults[name].pop(0)), None, "Out of order")
                return
            found = self.find(name, revision)
            if found is None:
                return
            repository, commit = found
            files = repository.commits[commit]
            answer: Any = [_entry(file, files[file]) for file in sorted(files)]
            if what == "revision":
                answer = {"_id": "6", "id": name, "modelId": name, "sha": commit, "private": False, "disabled": False}
                answer |= {"gated": "auto" if repository.gated else False, "tags": ["diffusers"], "downloads": 1}
                answer["siblings"] = [{"rfilename": file} for file in sorted(files)]
            self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json; charset=utf-8"})

        def resolve(self, name: str, revision: str, file: str) -> None:
            """`/owner/name/resolve/…`: small files are sent, and of large ones headers that point elsewhere."""
            found = self.find(name, revision)
            if found is None:
                return
            repository, commit = found
            if repository.gated and self.headers.get("Authorization") != f"Bearer {READER}":
                known = "Authorization" in self.headers
                self.refuse(403 if known else 401, "GatedRepo", f"Access to model {name} is restricted.")
            elif file not in repository.commits[commit]:
                self.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            else:
                place = repository.commits[commit][file]
                entry = _entry(file, place)
                headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
                if "lfs" in entry:
                    headers |= {"X-Linked-ETag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(entry["size"])}
                    headers["Location"] = f"http://localhost:{hub.port}/cdn/{name}/{commit}/{file}"
                    self.send(302, b"Found. Redirecting", headers)
                else:
                    self.send_content(place, file, headers)

        def send_content(self, place: Path | bytes, file: str, headers: Mapping[str, str] | None = None) -> None:
            """The bytes of a file, or of the range that was asked for; or what was planned to go wrong."""
            content, headers, status = _content(place), dict(headers or {}), 200
            fault = hub.faults[file].pop(0) if self.command == "GET" and hub.faults[file] else None
            if isinstance(fault, int):
                self.refuse(fault, None, "Out of order")
                return
            if (wanted := self.headers.get("Range")) and (match := re.fullmatch(r"bytes=(\d+)-", wanted)):
                hub.ranges.append(wanted)
                start, status = int(match[1]), 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                content = content[start:]
            self.send(status, content, headers, cut=fault == "cut")

        def refuse(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
            headers = {
                "X-Error-Message": message,
                **({} if code is None else {"X-Error-Code": code}),
                **(headers or {}),
            }
            self.send(status, json.dumps({"error": message}).encode(), headers)

        def send(self, status: int, content: bytes, headers: Mapping[str, str], cut: bool = False) -> None:
            """Answer. cut: close the connection in the middle of the content."""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = self.close_connection or cut

    return Handler


def _content(place: Path | bytes) -> bytes:
    return place if isinstance(place, bytes) else place.read_bytes()


@cache
def _entry(file: str, place: Path | bytes) -> dict[str, Any]:
    """A file as the API lists it. The oid of a Git LFS object is that of its pointer; here, of its name."""
    content = _content(place)
    entry: dict[str, Any] = {"type": "file", "path": file, "size": len(content)}
    if file.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        content = digest.encode()
    return {**entry, "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
