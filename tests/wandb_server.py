"""As much of a W&B server as is needed to see what reaches one."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0" * 40
"""An API key of the right length."""


class Page:
    """What was uploaded of one run."""

    def __init__(self) -> None:
        self.lines: dict[int, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {}
        self.artifacts: list[str] = []
        self.facts: dict[str, Any] = {}
        self.ends: list[int] = []
        """The status of each process that ended."""
        self.preempted = False

    @property
    def history(self) -> list[dict[str, Any]]:
        return [self.lines[number] for number in sorted(self.lines)]


@contextmanager
def wandb_server(stalled: bool = False) -> Iterator[tuple[str, dict[str, Page]]]:
    """Its address, and its pages by the runs' ids. A stalled one begins pages, and then takes nothing."""
    pages: dict[str, Page] = {}
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            self.answer({})

        def do_PUT(self) -> None:
            self.content()
            self.answer({})

        def do_POST(self) -> None:
            content = json.loads(self.content() or b"{}")
            if "query" in content:
                (operation,) = re.findall(r"^\s*(?:query|mutation) (\w+)", content["query"])
                self.answer({"data": self.graphql(operation, content.get("variables") or {})})
                return
            if stalled:
                over.wait()
            page = pages[self.path.split("/")[-2]]
            for name, chunk in (content.get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    page.lines |= {chunk["offset"] + i: json.loads(row) for i, row in enumerate(chunk["content"])}
                elif name == "wandb-summary.json":
                    page.summary = json.loads(chunk["content"][-1])
            page.preempted |= bool(content.get("preempting"))
            if content.get("complete"):
                page.ends.append(content["exitcode"])
            self.answer({"limits": {}})

        def content(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def answer(self, value: object) -> None:
            raw = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def graphql(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
            project = {"id": "P", "name": "p", "entity": {"id": "E", "name": "me"}}
            if operation == "UpsertBucket":
                page = pages.setdefault(given["name"], Page())
                page.facts |= {key: value for key, value in given.items() if value is not None}
                bucket = {"id": "B", "name": given["name"], "config": "{}", "project": project}
                return {"upsertBucket": {"bucket": bucket, "inserted": not page.lines}}
            if operation == "RunResumeStatus" and given["name"] in pages:
                page = pages[given["name"]]
                bucket = {
                    "id": "B",
                    "name": given["name"],
                    "historyLineCount": len(page.lines),
                    "historyTail": json.dumps([json.dumps(row) for row in page.history[-1:]]),
                    "summaryMetrics": json.dumps(page.summary),
                    "logLineCount": 0,
                    "eventsLineCount": 0,
                    "eventsTail": "[]",
                    "config": "{}",
                    "tags": [],
                    "wandbConfig": json.dumps({"t": 1}),
                }
                return {"model": {**project, "bucket": bucket}}
            if operation == "ArtifactType":
                return {"project": None}
            if operation == "CreateArtifact":
                name = given["input"]["artifactCollectionName"]
                kind, _, run = name.rpartition("-")
                pages[run].artifacts.append(kind)
                # It is said to be there already, so that no file is asked for.
                sequence = {"id": "S", "latestArtifact": {"id": "A", "versionIndex": 0}}
                return {"createArtifact": {"artifact": {"id": "A", "state": "COMMITTED", "artifactSequence": sequence}}}
            if operation == "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{address}/files/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
            if operation == "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            if operation == "Viewer":
                return {"viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            return {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address, pages
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()
