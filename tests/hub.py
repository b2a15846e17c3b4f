"""A hub of models on this machine: one repository, spoken to as `huggingface_hub` speaks."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34
REPO = "somebody/flux"


class Hub:
    """Serves files by name. cuts: bytes after which the line breaks, by name, each once. sizes: of
    files that are said to be larger than they are."""

    def __init__(self, files):
        self.files, self.hashes, self.cuts, self.asked = {}, {}, {}, []
        self.sizes = {}
        for name, data in files.items():
            self.put(name, data)
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer(with_body=False)

            def do_GET(self):
                self.answer(with_body=True)

            def answer(self, with_body):
                hub.answer(self, with_body)

            def log_message(self, *args): ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, name, data):
        self.files[name], self.hashes[name] = data, hashlib.sha256(data).hexdigest()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, http, with_body):
        path = http.path.partition("?")[0]
        self.asked.append((http.command, path, http.headers.get("range")))
        revision, _, name = path.removeprefix(f"/{REPO}/resolve/").partition("/")
        found = revision in (COMMIT, "main")
        if path.startswith(f"/api/models/{REPO}/tree/"):
            self._say(http, 200, json.dumps([self._entry(name) for name in self.files]).encode())
        elif path.rpartition("/revision/")[0] == f"/api/models/{REPO}" or path == (
            f"/api/models/{REPO}"
        ):
            siblings = [{"rfilename": name, **self._entry(name)} for name in self.files]
            told = {"id": REPO, "sha": COMMIT, "siblings": siblings}
            self._say(http, 200, json.dumps(told).encode())
        elif found and name in self.files:
            self._send(http, name, with_body=with_body)
        else:
            self._say(http, 404, b"{}", {"x-error-code": "RepoNotFound"})

    def _entry(self, name):
        size = self.sizes.get(name, len(self.files[name]))
        lfs = {"sha256": self.hashes[name], "oid": self.hashes[name], "size": size}
        entry = {"type": "file", "path": name, "oid": "0" * 40, "blobId": "0" * 40, "size": size}
        return {**entry, "lfs": {**lfs, "pointerSize": 1}} if "safetensors" in name else entry

    def _send(self, http, name, *, with_body):
        data, headers = self.files[name], {"x-repo-commit": COMMIT, "accept-ranges": "bytes"}
        headers["etag"] = f'"{self.hashes[name]}"'
        first, status = 0, 200
        if asked := http.headers.get("range"):
            first, status = int(asked.removeprefix("bytes=").partition("-")[0]), 206
            headers["content-range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        body = data[first:]
        cut = self.cuts.pop(name, None) if with_body else None
        self._say(http, status, body, headers, with_body=with_body, cut=cut)

    def _say(self, http, status, body, headers=(), *, with_body=True, cut=None):
        http.send_response(status)
        for name, value in {**dict(headers), "content-length": str(len(body))}.items():
            http.send_header(name, value)
        http.end_headers()
        if with_body:
            http.wfile.write(body[:cut])
        if cut is not None:
            http.wfile.flush()
            http.close_connection = True
