"""An exported policy on the hub: by the real client, to a server of the test's own."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from pydantic import JsonValue

from stllava.errors import StllavaError
from stllava.remote.push import push_policy
from stllava.stages.export import export


class Hub:
    """What the server was told."""

    def __init__(self) -> None:
        self.created: list[dict[str, object]] = []
        self.files: dict[str, bytes] = {}
        self.keys: set[str] = set()
        self.status = 200


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that takes every file in the commit itself."""
    told = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep quiet."""

        def answer(self, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(told.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def whole(self) -> bytes:
            """The body, also one that comes in pieces."""
            if self.headers["Content-Length"]:
                return self.rfile.read(int(self.headers["Content-Length"]))
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def do_GET(self) -> None:
            self.answer({"id": "me/mine", "sha": "0" * 40, "siblings": []})

        def do_POST(self) -> None:
            body = self.whole()
            told.keys.add(self.headers["authorization"] or "")
            here = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            if self.path == "/api/repos/create":
                told.created.append(json.loads(body))
                self.answer({"url": f"{here}/me/mine", "name": "me/mine"})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                names = [one["path"] for one in json.loads(body)["files"]]
                self.answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
            elif "/commit/" in self.path:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        told.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                self.answer({"commitUrl": f"{here}/me/mine/commit/{'0' * 40}", "commitOid": "0" * 40, "hookOutput": ""})
            else:
                self.send_error(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {"ENDPOINT": address, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield told
    server.shutdown()
    server.server_close()


@pytest.fixture
def exported(tiny_model: Path, tmp_path: Path) -> Path:
    export(tiny_model, to=tmp_path / "exported")
    return tmp_path / "exported"


def test_weights_processor_and_card_go_to_a_private_repository_and_nothing_else(hub: Hub, exported: Path) -> None:
    index: dict[str, JsonValue] = {"model-index": [{"name": "mine", "results": []}]}
    address, files = push_policy(exported, "me/mine", private=True, metadata=index)
    assert address.endswith("/me/mine")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files) == set(hub.files)
    assert not {"plan.json", "manifest.json", "lock"} & set(hub.files)
    assert hub.files["model.safetensors"] == (exported / "model.safetensors").read_bytes()
    assert (hub.created[0]["name"], hub.created[0]["visibility"]) == ("mine", "private")
    assert hub.keys == {"Bearer hf_of_a_test"}
    head = yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])
    assert head["model-index"] == index["model-index"]
    assert hub.files["README.md"].decode().split("---\n", 2)[2] == (exported / "README.md").read_text().split("---\n", 2)[2]


def test_what_names_this_machine_or_its_user_is_not_sent(
    hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "mueller")
    card = (exported / "README.md").read_text()
    for planted in ("made by mueller.", f"see {Path.home()}/scans"):
        (exported / "README.md").write_text(f"{card}\n{planted}\n")
        with pytest.raises(StllavaError, match="nothing was sent"):
            push_policy(exported, "me/mine", private=True, metadata={})
    assert (hub.created, hub.files) == ([], {})


def test_what_the_hub_refuses_is_said_in_a_sentence(hub: Hub, exported: Path) -> None:
    hub.status = 403
    with pytest.raises(StllavaError, match="the hub did not take me/mine: "):
        push_policy(exported, "me/mine", private=True, metadata={})
    with pytest.raises(StllavaError, match="is no repository"):
        push_policy(exported, "mine", private=True, metadata={})


def test_a_folder_that_is_no_exported_policy_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StllavaError, match="is no exported policy"):
        push_policy(tmp_path, "me/mine", private=True, metadata={})
