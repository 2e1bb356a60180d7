"""A real HTTP server on loopback that talks like an OpenAI-compatible one, and misbehaves on demand."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = "{'pred': 'yes', 'score': 4}"


class JudgeServer:
    """``script`` maps a word in the user message to what happens on its 1st, 2nd, ... request; the last one stays.

    A step is a reply text, or ("status", code, headers, error), the last one optional, ("body", bytes, type),
    ("drop",), ("cut",), ("hang",).
    """

    def __init__(self):
        self.script = {}
        self.extra = {}  # further fields of every reply
        self.seen = []  # (monotonic time, path, headers, request body)
        self.most_at_once = 0
        self.gate = None  # a threading.Barrier that requests have to meet at
        self.release = threading.Event()
        self._under_way = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def step(self, user):
        """What to do with this message now."""
        for word, steps in self.script.items():
            if word in user:
                with self._lock:
                    return steps.pop(0) if len(steps) > 1 else steps[0]
        return GOOD

    def _handler(self):
        server = self  # the inner class has a self of its own

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with server._lock:
                    server.seen.append((time.monotonic(), self.path, headers, body))
                    server._under_way += 1
                    server.most_at_once = max(server.most_at_once, server._under_way)
                if server.gate is not None:
                    server.gate.wait(timeout=20)
                # Before the reply goes out: the client may send the next request as soon as it has it.
                with server._lock:
                    server._under_way -= 1
                self._act(server.step(body["messages"][-1]["content"]), body["model"])

            def _act(self, step, model):
                if isinstance(step, str):
                    reply = {
                        "id": "x",
                        "object": "chat.completion",
                        "created": 0,
                        "model": f"{model}-0613",
                        "choices": [
                            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": step}}
                        ],
                        **server.extra,
                    }
                    self._send(200, json.dumps(reply).encode(), "application/json", {})
                elif step[0] == "status":
                    error = step[3] if len(step) > 3 else {"message": "as asked"}
                    self._send(step[1], json.dumps({"error": error}).encode(), "application/json", step[2])
                elif step[0] == "body":
                    self._send(200, step[1], step[2], {})
                elif step[0] == "hang":
                    server.release.wait(timeout=20)
                else:
                    if step[0] == "cut":  # half an answer, then nothing
                        self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"id": "x", "cho')
                        self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

            def _send(self, status, body, kind, headers):
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Silence on the test's output."""

        return Handler
