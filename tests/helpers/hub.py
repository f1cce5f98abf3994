"""A small Hugging Face Hub on loopback, for the real `load_dataset` to talk to."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

COMMIT = "c" * 40
REFUSED = b"a file of this content is refused"


def write_dataset(root: Path, repo: str, config: str, splits: dict[str, list[str]], column: str = "text"):
    """Write a dataset as on the Hub, or one more configuration: a parquet file per split, and a README."""
    folder = root / repo / config
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        pq.write_table(pa.table({column: rows}), folder / f"{split}-00000-of-00001.parquet")
    named = f"- config_name: {config}\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: {config}/{split}-*\n" for split in splits
    )
    readme = root / repo / "README.md"
    before = readme.read_text().split("---\n")[1] if readme.exists() else "configs:\n"
    readme.write_text(f"---\n{before}{named}---\n# {repo}\n")


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve the datasets below `root`; yields the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind, *parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if kind == "api" and parts[0] == "datasets":
                repo, rest = root / "/".join(parts[1:3]), parts[3:]
            else:
                repo, rest = root / "/".join(parts[:2]), parts[2:]
            if not repo.is_dir():
                return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            files = {p.relative_to(repo).as_posix(): p for p in sorted(repo.rglob("*"))}
            if kind == "datasets":  # datasets/OWNER/NAME/resolve/REVISION/FILE
                if (file := files.get("/".join(rest[2:]))) is None:
                    return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                content = file.read_bytes()
                if content == REFUSED:
                    return self.send(403, b"", {})
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.send(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})
            if rest[:1] == ["tree"]:
                inside = "/".join(rest[2:])
                return self.send_json([self.entry(n, p) for n, p in files.items() if n.startswith(inside)])
            if rest[:1] == ["paths-info"]:
                wanted = json.loads(body)["paths"]
                return self.send_json([self.entry(name, files[name]) for name in wanted if name in files])
            return self.send_json(
                {"id": "/".join(parts[1:3]), "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            )

        do_GET = do_HEAD = do_POST = answer  # noqa: N815 - the base class's names

        @staticmethod
        def entry(name: str, path: Path):
            kind = "directory" if path.is_dir() else "file"
            return {"type": kind, "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 1}

        def send_json(self, value):
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def send(self, status: int, content: bytes, headers: dict[str, str]):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
