"""A small Hub on loopback: the calls of `huggingface_hub` for model repos, over real HTTP, kept in memory.

Faults are injected at a request: `hub.fail(Fault("PUT", "/lfs/", cut_after=1000))` cuts the connection for
real.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from cards import card_errors, eval_results


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png", ".pth")


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose method and path match.

    status: answered instead; cut_after: the connection ends after so many bytes of the body (of an upload,
    else of the answer), with `reset` without an orderly end; wrong_byte: one byte of the answer's body, in
    the middle, is another; code: the X-Error-Code beside `status`.
    """

    method: str
    path: str
    status: int | None = None
    cut_after: int | None = None
    reset: bool = False
    wrong_byte: bool = False
    code: str = ""
    times: int = 1


@dataclass
class Repo:
    """Branches are names of commits; a commit is {path: bytes}."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        digest = hashlib.sha1(f"{branch} {message} {len(self.commits)}".encode())
        for path in sorted(files):
            digest.update(path.encode() + hashlib.sha1(files[path]).digest())
        sha = digest.hexdigest()
        self.commits[sha], self.messages[sha], self.branches[branch] = files, message, sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub:` serves `hub.endpoint`. `tokens`: {token: user}, who writes to own repos only."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.tokens = {"hf_u": "u", "hf_other": "other"}
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.lock = threading.RLock()

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients that go away are what the tests are about."""

    def fail(self, fault: Fault) -> None:
        self.faults.append(fault)

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault


class RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", sha: str | None = None):
        self.status, self.code, self.message, self.sha = status, code, message, sha


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    # (method, path pattern, name of the method here); groups are its arguments
    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)", "create_branch"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs", "refs"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "tree"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?", "model_info"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def do_GET(self):
        self.dispatch("GET")

    def do_HEAD(self):
        self.dispatch("HEAD")

    def do_POST(self):
        self.dispatch("POST")

    def do_PUT(self):
        self.dispatch("PUT")

    def log_message(self, *_):
        pass

    def dispatch(self, method: str) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append((method, path, self.headers.get("Range")))
        self.fault = self.server.take_fault(method, path)
        if self.fault and self.fault.cut_after is not None and method in ("PUT", "POST"):
            self.rfile.read(min(self.fault.cut_after, int(self.headers.get("Content-Length", 0))))
            return self.cut()
        self.body = self.read_body()
        try:
            if self.fault and self.fault.status:
                raise RefusedError(self.fault.status, self.fault.code, message="as the test wants it")
            for verb, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, path)
                if match and verb == ("GET" if method == "HEAD" else method):
                    groups = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    return getattr(self, name)(**groups)
            raise RefusedError(404, message=f"no such call: {method} {path}")
        except RefusedError as refused:
            headers = {
                "X-Error-Code": refused.code,
                "X-Error-Message": refused.message,
                "X-Repo-Commit": refused.sha,
            }
            self.answer({"error": refused.message}, refused.status, **headers)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def cut(self) -> None:
        if self.fault.reset:  # instead of an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def answer(self, content, status: int = 200, **headers) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.wrong_byte and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if self.fault and self.fault.cut_after is not None:
            self.wfile.write(body[: self.fault.cut_after])
            self.wfile.flush()
            return self.cut()
        self.wfile.write(body)

    # Who may do what

    def user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        return self.server.tokens.get(token)

    def writing(self, name: str) -> None:
        user = self.user()
        if user is None:
            raise RefusedError(401, message="Invalid username or password.")
        if name.split("/")[0] != user:
            raise RefusedError(403, message=f"You don't have the rights to write to {name}")

    def repo(self, name: str) -> Repo:
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and self.user() != name.split("/")[0]):
            raise RefusedError(401 if self.user() is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self.repo(name)
        sha = repo.find(revision)
        if sha is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.commits[sha]

    # Calls

    def whoami(self) -> None:
        if self.user() is None:
            raise RefusedError(401, message="Invalid username or password.")
        self.answer(
            {"type": "user", "name": self.user(), "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        )

    def validate_yaml(self) -> None:
        errors = card_errors(json.loads(self.body)["content"])
        self.answer(
            {"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200
        )

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self.user()}/{asked['name']}"
        self.writing(name)
        url = {"url": f"{self.server.endpoint}/{name}", "name": name}
        with self.server.lock:
            if name in self.server.repos:
                return self.answer({**url, "error": "You already created this model repo"}, 409)
            self.server.repos[name] = Repo(private=asked.get("visibility") == "private")
        self.answer(url)

    def create_branch(self, repo: str, branch: str) -> None:
        self.writing(repo)
        if branch in self.repo(repo).branches:
            raise RefusedError(409, message="Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        self.repo(repo).branches[branch] = self.find(repo, start)[0]
        self.answer({})

    def preupload(self, repo: str, revision: str) -> None:
        self.writing(repo)
        self.find(repo, revision)
        files = [file["path"] for file in json.loads(self.body)["files"]]
        modes = ("lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in files)
        self.answer(
            {
                "files": [
                    {"path": p, "uploadMode": mode, "shouldIgnore": False}
                    for p, mode in zip(files, modes, strict=True)
                ]
            }
        )

    def lfs_batch(self, repo: str) -> None:
        self.writing(repo)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            known = asked["oid"] in self.server.blobs
            action = {"upload": {"href": f"{self.server.endpoint}/lfs/{asked['oid']}"}}
            objects.append({**asked, **({} if known else {"actions": action})})
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, message="the content is not that of its hash")
        self.server.blobs[oid] = self.body
        self.answer({})

    def commit(self, repo: str, revision: str) -> None:
        self.writing(repo)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        with self.server.lock:
            files = dict(self.find(repo, revision)[1])
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.server.blobs:
                        raise RefusedError(400, message=f"LFS object {value['oid']} was not uploaded")
                    files[value["path"]] = self.server.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    files.pop(value["path"], None)
            readme = files.get("README.md")
            if errors := card_errors(readme.decode()) if readme else []:
                raise RefusedError(400, message="; ".join(errors))
            sha = self.repo(repo).commit(revision, files, lines[0]["value"]["summary"])
        self.answer(
            {"commitUrl": f"{self.server.endpoint}/{repo}/commit/{sha}", "commitOid": sha, "hookOutput": ""}
        )

    def refs(self, repo: str) -> None:
        branches = self.repo(repo).branches.items()
        rows = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        self.answer({"branches": rows, "tags": [], "converts": []})

    def model_info(self, repo: str, revision: str | None) -> None:
        sha, files = self.find(repo, revision or "main")
        siblings = [{"rfilename": path} for path in files]
        info = {
            "_id": sha[:24],
            "id": repo,
            "modelId": repo,
            "sha": sha,
            "private": self.repo(repo).private,
            "siblings": siblings,
        }
        self.answer({**info, "evalResults": eval_results(files)})

    def tree(self, repo: str, revision: str, folder: str | None) -> None:
        _, files = self.find(repo, revision)
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
        prefix, entries = f"{folder}/" if folder else "", {}
        for path, content in files.items():
            if path.startswith(prefix):
                first, *rest = path[len(prefix) :].split("/")
                if rest and not recursive:
                    entries[prefix + first] = {
                        "type": "directory",
                        "path": prefix + first,
                        "oid": git_oid(first.encode()),
                        "size": 0,
                    }
                else:
                    entries[path] = entry(path, content)
        if folder and not entries:
            raise RefusedError(404, "EntryNotFound", f"{folder} does not exist")
        self.answer(list(entries.values()))

    def paths_info(self, repo: str, revision: str) -> None:
        _, files = self.find(repo, revision)
        body = self.body.decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        self.answer([entry(path, files[path]) for path in asked if path in files])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        sha, files = self.find(repo, revision)
        if path not in files:
            raise RefusedError(404, "EntryNotFound", "Entry not found", sha)
        content = files[path]
        etag = hashlib.sha256(content).hexdigest() if path.endswith(LFS_SUFFIXES) else git_oid(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not span:
            return self.answer(content, **headers)
        first, last = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
        if first >= len(content):
            raise RefusedError(416, message="Requested Range Not Satisfiable", sha=sha)
        self.answer(
            content[first : last + 1], 206, Content_Range=f"bytes {first}-{last}/{len(content)}", **headers
        )


def entry(path: str, content: bytes) -> dict:
    lfs = {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}
    return {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": git_oid(content),
        **(lfs if path.endswith(LFS_SUFFIXES) else {}),
    }


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
