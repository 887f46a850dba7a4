"""An exported policy and a run's preferences on the hub: by the real client, to a server of the test's own."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets  # type: ignore[import-untyped]
import huggingface_hub
import pytest
import yaml
from PIL import Image
from pydantic import JsonValue

from stllava.cli import main
from stllava.config import DatasetOptions
from stllava.data.exchange.parquet import write_parquet
from stllava.errors import StllavaError
from stllava.records import JudgeCheck, Preference, Rate, ReaderSpeed, VotesCheck
from stllava.remote.push import push_dataset, push_policy
from stllava.report.preferences_card import write_preferences_card
from stllava.report.run_files import read_run_files
from stllava.stages.convert_dataset import convert_dataset
from stllava.stages.export import export
from stllava.store import read_records
from test_report import EVIL, build


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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return build(tmp_path / "secret-place" / "run", images=6, rounds=2).run


def load(folder: Path, cache: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


def head_of(card: str) -> dict[str, object]:
    read: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return read


def test_pairs_of_all_rounds_are_a_data_set_in_the_columns_of_trl(run: Path, tmp_path: Path) -> None:
    made = convert_dataset(run, DatasetOptions(include_images=True), to=tmp_path / "pairs")
    rows = load(tmp_path / "pairs", tmp_path / "cache")
    pairs = [(n, pair) for n in (1, 2) for pair in read_records(run / f"round-{n}" / "pair", "preferences", Preference)]
    assert made.manifest.counts_out == len(rows) == len(pairs) > 6
    for row, (number, pair) in zip(rows, pairs, strict=True):
        assert row["prompt"] == [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": pair.prompt[0].content}]}
        ]
        for column, said in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            assert row[column] == [{"role": "assistant", "content": [{"type": "text", "text": said}]}]
        assert (row["round"], row["id"], row["margin"]) == (f"round-{number}", pair.id, pair.margin)
        with Image.open(run / "data" / "images" / pair.images[0]) as image:
            (shown,) = row["images"]
            assert shown.convert("RGB").tobytes() == image.convert("RGB").tobytes()
        assert not shown.info


def test_without_images_whoever_holds_them_finds_them_by_the_cards_own_code(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pairs"
    convert_dataset(run, DatasetOptions(), to=folder)
    assert "images" not in load(folder, tmp_path / "cache").column_names
    (folder / "images").symlink_to(run / "data" / "images")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    known: dict[str, datasets.Dataset] = {}
    exec(code, known)
    assert [row["images"][0].size for row in known["pairs"]] == [(128, 128)] * len(known["pairs"])


def test_the_card_says_how_much_who_judged_and_only_what_was_said_of_license_and_language(run: Path, tmp_path: Path) -> None:
    convert_dataset(run, DatasetOptions(), to=tmp_path / "pairs")
    card = (tmp_path / "pairs" / "README.md").read_text()
    head = head_of(card)
    assert head["size_categories"] == ["n<1K"]
    assert {"visual-question-answering"} <= set(head["task_categories"])  # type: ignore[call-overload]
    assert head["language"] == ["en"]
    assert "license" not in head
    assert "The expert: oracle." in card
    assert "| round-1 | 6 | 6 | 5 |" in card
    assert "1 tie" in card
    assert "was not measured" in card
    assert EVIL not in card
    for secret in ("secret-place", "test/000", "000.png", str(Path.home())):
        assert secret not in card
    convert_dataset(run, DatasetOptions(license="cc-by-4.0", language="de"), to=tmp_path / "said")
    said = head_of((tmp_path / "said" / "README.md").read_text())
    assert (said["license"], said["language"]) == ("cc-by-4.0", ["de"])


def test_the_card_has_the_check_of_the_expert_and_what_readers_said_without_their_names(run: Path) -> None:
    files = read_run_files(run)
    rate = Rate(value=0.125, low=0.05, high=0.25, n=40)
    nothing = dict.fromkeys(("reader_error", "overturned", "significant", "bad_questions", "bad_images", "between_readers"))
    votes = VotesCheck(
        expert="oracle", tasks=9, read=8, choices={}, strata=(), disagreed=None, expert_error=rate, with_expert=None,
        readers=(ReaderSpeed(reader="Dr Mueller", votes=8, undone=0, median_seconds=3.0, same_again=rate),),
        median_seconds=None, corrected=0, **nothing,
    )  # fmt: skip
    check = JudgeCheck(
        expert="oracle", questions=50, requests=100, flips=rate, first_wins=None, repeats=None, longer_wins=None,
        longer_wins_adjusted=None, agreement=None, truth="", examples=(),
    )  # fmt: skip
    first, *others = files.rounds
    audit = files.manifests["data"].model_copy(update={"measures": {"true_error": 0.2}})
    manifests = files.manifests | {"expert-audit/result": audit}
    files = replace(files, check=check, rounds=(replace(first, votes=votes), *others), manifests=manifests)
    counts = {part.name: len(part.preferences) for part in files.rounds}
    card = write_preferences_card(files, counts=counts, file="train.parquet", images=True, license_name=None, language=None)
    assert "A check of the expert on 50 questions" in card
    assert "8 were read by 1 person" in card
    assert card.count("0.125") == 2
    assert "20.0" in card.split("An audit of the expert")[1]
    assert "Mueller" not in card


def test_no_row_names_a_path_or_an_image(run: Path, tmp_path: Path) -> None:
    for included in (True, False):
        folder = tmp_path / f"pairs-{included}"
        convert_dataset(run, DatasetOptions(include_images=included), to=folder)
        rows = load(folder, tmp_path / "cache").to_list()
        text = str([{key: value for key, value in row.items() if key != "images"} for row in rows])
        assert not [one for one in ("secret-place", "test/0", ".png") if one in text]
        assert not any(image["path"] for row in rows for image in row.get("images", ()))
        assert b"secret-place" not in (folder / "train.parquet").read_bytes()


def test_card_and_rows_go_to_a_private_data_set_and_nothing_else(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pairs"
    main(["convert", "dataset", str(run), "--to", str(folder), "--include-images", "--push", "me/mine"])
    assert "README.md, train.parquet" in capsys.readouterr().out
    assert hub.files == {name: (folder / name).read_bytes() for name in ("README.md", "train.parquet")}
    assert (hub.created[0]["type"], hub.created[0]["visibility"]) == ("dataset", "private")
    assert hub.keys == {"Bearer hf_of_a_test"}


def test_a_row_that_names_this_machine_or_its_user_keeps_the_data_set_here(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "mueller")
    row = read_records(run / "round-2" / "pair", "preferences", Preference)[-1]
    folder, pictures = tmp_path / "pairs", run / "data" / "images"
    convert_dataset(run, DatasetOptions(), to=folder)
    whole = (folder / "train.parquet").read_bytes()
    for planted in ("Right.\nmueller says so.", f"see {Path.home()}/scans"):
        rows = [("round-1", row), ("round-2", row.model_copy(update={"rejected": planted}))]
        write_parquet(rows, to=folder / "train.parquet", images=pictures, encode=None)
        with pytest.raises(StllavaError, match=r"train\.parquet names"):
            push_dataset(folder, "me/mine", private=True)
    (folder / "train.parquet").write_bytes(whole)
    (folder / "README.md").write_text(f"{(folder / 'README.md').read_text()}\nmade by mueller.\n")
    with pytest.raises(StllavaError, match=r"README\.md names mueller"):
        push_dataset(folder, "me/mine", private=True)
    assert (hub.created, hub.files) == ([], {})
    with pytest.raises(StllavaError, match="is no data set"):
        push_dataset(tmp_path, "me/mine", private=True)


def test_a_run_without_pairs_or_without_its_images_is_refused(run: Path, tmp_path: Path) -> None:
    nothing = build(tmp_path / "nothing", images=2, rounds=1, pairs=False).run
    with pytest.raises(StllavaError, match="made no pairs of answers"):
        convert_dataset(nothing, DatasetOptions(), to=tmp_path / "none")
    (run / "data" / "images" / "test" / "000.png").unlink()
    for included in (True, False):
        with pytest.raises(StllavaError, match="an image of the pairs cannot be read"):
            convert_dataset(run, DatasetOptions(include_images=included), to=tmp_path / f"gone-{included}")
