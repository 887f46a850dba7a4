"""Stands for vLLM: serves a script of replies, with the faults that the file `faults.json` beside the replies names.

FAKE_ENGINE names a folder. `said.json` holds the text and log-probability of each prompt's last words; all other prompts are
echoed. `faults.json` holds what goes wrong, by name, each with how often: `start` (ends before it is ready), `slow` (seconds
until it is ready), `die` (ends at a request), `500` (to every request of a start that was given it). `pids.txt` gets the
process ids of every start and of the child that each start has.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

FOLDER = Path(os.environ["FAKE_ENGINE"])
_LOCK = Lock()


def takes(fault: str) -> float:
    """Use a fault up, once; 0 where there is none left."""
    with _LOCK:
        path = FOLDER / "faults.json"
        faults = json.loads(path.read_text()) if path.is_file() else {}
        left = faults.get(fault, 0)
        if left and fault != "slow":
            path.write_text(json.dumps(faults | {fault: left - 1}))
        return float(left)


class Handler(BaseHTTPRequestHandler):
    """Answers as vLLM would."""

    protocol_version = "HTTP/1.1"
    broken = False

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _reply(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """The list of models."""
        self._reply(200, {"data": []})

    def do_POST(self) -> None:
        """A completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if takes("die"):
            os._exit(1)
        if Handler.broken:
            self._reply(500, {"error": {"message": "engine dead"}})
            return
        last = body["messages"][-1]["content"]
        words = last if isinstance(last, str) else " ".join(part["text"] for part in last if part["type"] == "text")
        images = [part["image_url"]["url"] for part in last if part["type"] == "image_url"] if isinstance(last, list) else []
        said = json.loads((FOLDER / "said.json").read_text())
        text, known = said.get(words, [f"about {words}", -1.0])
        with _LOCK, (FOLDER / "requests.jsonl").open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), "words": words, "images": [hash(url) for url in images]}) + "\n")
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": text, "logprob": known}]}
        self._reply(200, {"object": "chat.completion", "choices": [choice]})


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    given, rest = parser.parse_known_args()
    (FOLDER / "flags.json").write_text(json.dumps(rest))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with (FOLDER / "pids.txt").open("a") as file:
        file.write(f"{os.getpid()} {child.pid}\n")
    if takes("start"):
        sys.exit("CUDA out of memory, say")
    Handler.broken = bool(takes("500"))
    time.sleep(takes("slow"))
    ThreadingHTTPServer(("127.0.0.1", given.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
