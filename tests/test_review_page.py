"""The page's server: what it shows before and after a vote, and what it refuses, whoever asks."""

import atexit
import itertools
import json
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from helpers.judging import answers_of, write_answers
from helpers.reviewing import write_evaluation, write_import, write_questions, write_round
from stllava.config import JudgeOptions, ReviewOptions
from stllava.errors import StllavaError
from stllava.records import ItemKind, Judgment, ReviewTask
from stllava.review.choices import ReviewKind
from stllava.review.image_store import ImageStore, image_id
from stllava.review.items import draw_items
from stllava.review.open_task import AnyTask, sentences
from stllava.review.readings import standing
from stllava.review.security import HEADERS, MAX_BODY, Door
from stllava.review.serve import password_of
from stllava.review.server import PAGE_READER, review_app
from stllava.review.session import ReviewSession
from stllava.review.tasks import draw_tasks
from stllava.review.vote_log import read_votes
from stllava.store import Stage

HOST = "127.0.0.1:8765"
ORIGIN = f"http://{HOST}"
FIRST: dict[ReviewKind, str] = {"verdicts": "left", "predictions": "right", "questions": "valid", "pictures": "burned"}
"""A vote on each kind of task."""


def by_kinds(*attacks: object) -> list[tuple[ReviewKind, object]]:
    """Each attack on the page of verdicts, and on one of the others by turns."""
    _, *others = FIRST
    turns = [(kind, attack) for kind, attack in zip(itertools.cycle(others), attacks, strict=False)]
    return [*((next(iter(FIRST)), attack) for attack in attacks), *turns]


EVIL = "<script>document.title = 'evil'</script>\x1b[2J\x1b]0;owned\x07 A mass. \u202eright"


def of_page(reader: str) -> dict[str, str]:
    """What the page of a reader sends with every request."""
    return {"Origin": ORIGIN, PAGE_READER: quote(reader)}


@dataclass
class Opened:
    """A page over a small round."""

    folder: Path
    tasks: Sequence[AnyTask]
    session: ReviewSession
    door: Door
    images: ImageStore
    browsers: ExitStack

    @property
    def pairs(self) -> list[ReviewTask]:
        """The tasks that are pairs of answers."""
        return [task for task in self.tasks if isinstance(task, ReviewTask)]

    def client(self, reader: str = "anna", *, enter: bool = True) -> TestClient:
        """A browser, which has come in or not."""
        app = review_app(self.session, self.images, self.door, title="a round")
        client = TestClient(app, base_url=ORIGIN, headers=of_page(reader), follow_redirects=False)
        self.browsers.enter_context(client)
        if enter:
            assert client.get(self.door.invite(reader)).status_code == 303
        return client


Open = Callable[..., Opened]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens a page over a round of so many questions, or over so many predictions or questions."""
    closing_down = ExitStack()

    def make(
        count: int = 30,
        *,
        kind: ReviewKind = "verdicts",
        text: str = "",
        readers: Sequence[str] = ("anna",),
        password: str | None = None,
        **more: object,
    ) -> Opened:
        options = ReviewOptions.model_validate({"overlap": 0.0, "repeats": 0.0, **more})
        tasks = drawn_tasks(tmp_path, kind, options, count=count, text=text)
        session = ReviewSession(tmp_path / "review", tasks, readers)
        closing_down.callback(session.close)
        root = tmp_path / ("set" if kind == "pictures" else "images")
        images = ImageStore(root, (path for task in tasks for path in task.images))
        door = Door(frozenset({HOST}), "stllava-8765", password)
        return Opened(tmp_path / "review", tasks, session, door, images, closing_down)

    with closing_down:
        yield make


def drawn_tasks(folder: Path, kind: ReviewKind, options: ReviewOptions, *, count: int, text: str) -> Sequence[AnyTask]:
    """What is drawn into the folder `review`, of a round, an evaluation or questions that are written where there are none."""
    to, images = folder / "review", folder / "images"
    if kind == "verdicts":
        if not (folder / "judge").is_dir():
            write_round(folder, count)
        return draw_tasks(options, answers=folder / "answer", judgments=folder / "judge", to=to)
    one: ItemKind = kind
    if kind == "pictures":
        if not (folder / "set").is_dir():
            shutil.copytree(imported_set(), folder, dirs_exist_ok=True)
        return draw_items(options, kind=one, source=folder / "set", to=to)
    if not (folder / kind).is_dir():
        if kind == "predictions":
            write_evaluation(folder / kind, count, images=images, answer=text)
        else:
            write_questions(folder / kind, count, images=images, text=text)
    return draw_items(options, kind=one, source=folder / kind, to=to)


@cache
def imported_set() -> Path:
    """The folder of an imported set, made once: it takes a worker."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    write_import(folder, 9)
    return folder


def named(shown: dict[str, object], **more: object) -> dict[str, object]:
    """What the page sends about the task on screen."""
    return {"task": shown["task"], "turn": shown["turn"], **more}


def test_before_the_vote_nothing_of_the_experts_is_told_and_after_it_the_verdict_is(opened: Open) -> None:
    page = opened()
    client = page.client()
    shown = client.get("/task").json()
    task = page.pairs[0]
    assert (shown["state"], shown["question"], shown["task"]) == ("open", task.question, task.id)
    assert sorted("".join(parts) for parts in shown["answers"]) == sorted(task.texts)
    told = json.dumps(shown)
    assert not any(word in told for word in ("made up", "uncertain", "random", "score", "I see it", "verdict", "policy"))
    voted = client.post("/vote", json=named(shown, choice="left", struck=[["left", 0]], typed=" a mass ")).json()
    assert (voted["state"], voted["choice"], voted["grounds"], voted["typed"]) == ("voted", "left", task.reason, "a mass")
    vote = read_votes(page.folder)["anna"][0]
    left = "first" if "".join(shown["answers"][0]) == task.texts[0] else "second"
    assert (vote.choice, vote.left, vote.correct_answer, vote.reader) == (left, left, "a mass", "anna")
    assert voted["verdict"] == ("left" if task.verdict == left else "right")
    assert [(one.answer, one.text) for one in vote.struck] == [(left, shown["answers"][0][0].strip())]
    after = client.post("/next", json=named(shown)).json()
    assert (after["state"], after["task"], after["read"]) == ("open", page.tasks[1].id, 1)


def test_a_response_an_undo_and_a_reload_are_as_they_should_be(opened: Open) -> None:
    page = opened()
    client = page.client()
    shown = client.get("/task").json()
    refused = client.post("/respond", json=named(shown, decision="confirm"))
    assert refused.status_code == 409
    choice = "left" if page.pairs[0].verdict != "equal" else "equal"
    voted = client.post("/vote", json=named(shown, choice=choice)).json()
    if voted["verdict"] == choice:
        client.post("/undo", json={})
        voted = client.post("/vote", json=named(shown, choice="right")).json()
    answer = named(shown, decision="overturn", reason="It lies lower.", significant=True)
    decided = client.post("/respond", json=answer).json()
    assert (decided["decision"], decided["reason"], decided["significant"]) == ("overturn", "It lies lower.", True)
    assert client.get("/task").json() == decided
    again = client.post("/undo", json={}).json()
    assert (again["state"], again["task"], again["read"]) == ("open", shown["task"], 0)
    assert again["answers"] == shown["answers"]
    lines = read_votes(page.folder)["anna"]
    assert [line.event for line in lines][-3:] == ["vote", "response", "undo"]
    assert (lines[-2].reason, lines[-2].significant) == ("It lies lower.", True)
    assert standing(lines) == {}
    assert client.post("/undo", json={}).status_code == 409


def test_what_agrees_with_the_expert_cannot_be_overturned(opened: Open) -> None:
    page = opened()
    client = page.client()
    shown = client.get("/task").json()
    left = "first" if "".join(shown["answers"][0]) == page.pairs[0].texts[0] else "second"
    client.post("/vote", json=named(shown, choice="left" if page.pairs[0].verdict == left else "right"))
    assert client.post("/respond", json=named(shown, decision="overturn")).status_code == 409


def test_undo_goes_back_vote_by_vote(opened: Open) -> None:
    page = opened()
    client = page.client()
    for _ in range(3):
        shown = client.get("/task").json()
        client.post("/vote", json=named(shown, choice="equal"))
        client.post("/next", json=named(shown))
    seen = [client.post("/undo", json={}).json()["task"] for _ in range(3)]
    assert seen == [task.id for task in page.tasks[2::-1]]
    assert client.get("/task").json()["read"] == 0


def test_a_round_is_read_to_its_end_and_goes_on_after_a_restart(opened: Open) -> None:
    page = opened(12, repeats=1.0)
    client = page.client()
    seen: list[tuple[str, int]] = []
    while (shown := client.get("/task").json())["state"] != "done":
        seen.append((shown["task"], shown["turn"]))
        client.post("/vote", json=named(shown, choice="equal"))
        client.post("/next", json=named(shown))
        if len(seen) == 5:
            page.session.close()
            page = opened(repeats=1.0)
            client = page.client()
    assert Counter(turn for _, turn in seen) == {0: 12, 1: 12}
    assert len(set(seen)) == 24
    assert len(read_votes(page.folder)["anna"]) == 24


def test_readers_share_the_tasks_and_read_those_twice_that_two_are_to_read(opened: Open) -> None:
    page = opened(40, readers=("anna", "ben"), overlap=0.3)
    twice = {task.id for task in page.tasks if task.readers == 2}
    assert 0 < len(twice) < 40
    clients = {name: page.client(name) for name in ("anna", "ben")}
    while True:
        shown = {name: client.get("/task").json() for name, client in clients.items()}
        if all(one["state"] == "done" for one in shown.values()):
            break
        for name, one in shown.items():
            if one["state"] != "done":
                clients[name].post("/vote", json=named(one, choice="left"))
                clients[name].post("/next", json=named(one))
    times = Counter(vote.task_id for votes in read_votes(page.folder).values() for vote in votes)
    assert times == {task.id: task.readers for task in page.tasks}


def test_readers_of_another_process_are_seen_by_their_files(opened: Open) -> None:
    page = opened(20)
    client = page.client()
    shown = client.get("/task").json()
    client.post("/vote", json=named(shown, choice="left"))
    other = opened(20, readers=("ben",))
    assert other.client("ben").get("/task").json()["task"] == page.tasks[1].id


# --- attacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FIRST)
def test_nobody_comes_in_without_a_token_and_a_token_is_good_once(opened: Open, kind: ReviewKind) -> None:
    page = opened(kind=kind)
    client = page.client(enter=False)
    for path in ("/", "/task", f"/image/{image_id(page.tasks[0].images[0])}"):
        assert client.get(path).status_code == 401
    for path in ("/vote", "/undo", "/next", "/respond"):
        assert client.post(path, json={}).status_code == 401
    assert client.get("/open/guess").status_code == 403
    address = page.door.invite("anna")
    assert client.head(address).status_code == 403
    entered = client.get(address)
    assert entered.status_code == 303
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert client.get("/task").status_code == 200
    assert page.client(enter=False).get(address).status_code == 403
    client.cookies.set("stllava-8765", "guess", domain="127.0.0.1")
    stranger = page.client(enter=False)
    stranger.cookies.set("stllava-8765", "guess")
    assert stranger.get("/task").status_code == 401


def test_a_link_from_elsewhere_is_opened_by_this_server_itself(opened: Open) -> None:
    """Browsers keep a strict cookie back along a redirect that another site's link began: the token was used up for nothing."""
    page = opened()
    client, address = page.client(enter=False), page.door.invite("anna")
    for site in ("cross-site", "same-site"):
        reply = client.get(address, headers={"Sec-Fetch-Site": site})
        assert (reply.status_code, "set-cookie" in reply.headers) == (200, False)
        assert f'content="0; url={address}"' in reply.text
    assert client.get("/open/guess", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.get(address, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 303


def test_a_typed_answer_that_was_taken_out_again_is_gone(opened: Open) -> None:
    page = opened()
    client = page.client()
    shown = client.get("/task").json()
    client.post("/vote", json=named(shown, choice="both wrong", typed="a cyst"))
    assert client.post("/respond", json=named(shown, decision=None, typed="")).json()["typed"] == ""
    (found,) = standing(read_votes(page.folder)["anna"]).values()
    assert found.correct_answer is None


@pytest.mark.parametrize(
    ("kind", "host"),
    by_kinds("evil.example", "evil.example:8765", "127.0.0.1:9999", "127.0.0.1", "", "localhost.evil:8765"),
)
def test_another_host_is_refused_even_with_the_cookie(opened: Open, kind: ReviewKind, host: str) -> None:
    client = opened(kind=kind).client()
    assert client.get("/task", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    ("kind", "origin"),
    by_kinds("http://evil.example", "null", "http://127.0.0.1:9999", f"{ORIGIN}.evil", "file://"),
)
def test_a_post_of_another_page_is_refused_even_with_the_cookie(opened: Open, kind: ReviewKind, origin: str) -> None:
    page = opened(kind=kind)
    client = page.client()
    shown = client.get("/task").json()
    vote = named(shown, choice=FIRST[kind])
    assert client.post("/vote", json=vote, headers={"Origin": origin}).status_code == 403
    del client.headers["Origin"]
    assert client.post("/vote", json=vote).status_code == 403
    client.headers["Origin"] = ORIGIN
    for site in ("cross-site", "same-site"):
        assert client.post("/vote", json=vote, headers={"Sec-Fetch-Site": site}).status_code == 403
        assert client.get("/task", headers={"Sec-Fetch-Site": site}).status_code == 403
    form = {"Content-Type": "text/plain"}
    assert client.post("/vote", content=json.dumps(vote), headers=form).status_code == 400
    assert client.delete("/task").status_code == 403
    assert read_votes(page.folder)["anna"] == []


@pytest.mark.parametrize(
    ("kind", "key"),
    by_kinds("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "00000.png", "%00", "x" * 5000, "....//....//answer/answers.jsonl"),
)
def test_images_are_had_by_id_alone(opened: Open, kind: ReviewKind, key: str) -> None:
    page = opened(kind=kind)
    client = page.client()
    assert client.get(f"/image/{key}").status_code == 404
    assert client.get(f"/static/{key}").status_code == 404
    good = client.get(f"/image/{image_id(page.tasks[0].images[0])}")
    assert (good.status_code, good.headers["content-type"], good.headers["cache-control"]) == (200, "image/png", "no-store")


@pytest.mark.parametrize("kind", FIRST)
def test_every_reply_forbids_foreign_scripts_frames_and_keeping(opened: Open, kind: ReviewKind) -> None:
    client = opened(kind=kind).client()
    for path in ("/", "/task", "/image/x", "/static/review.js", "/nothing", "/open/x"):
        headers = client.get(path).headers
        assert {name: headers[name] for name in HEADERS} == dict(HEADERS)
    page = client.get("/").text
    assert "<script src=" in page
    assert not any(inline in page for inline in ("<script>", "onclick", "onerror", "style=", "<style", "http://", "https://"))


def test_what_models_say_is_text_and_nothing_else(tmp_path: Path, opened: Open) -> None:
    answers = answers_of(EVIL, (EVIL, "no"))
    write_answers(tmp_path / "answer", [answers])
    stage = Stage("judge", tmp_path / "judge", JudgeOptions(), inputs={}, existing="resume")
    judgment = Judgment(id="j", answers_id=answers.id, scores=(1.0, 0.0), cause=None, reason=EVIL, expert=EVIL, prompt_hash="h")
    stage.write_records("judgments", [judgment])
    stage.finish(counts_in=1, counts_out=1)
    client = opened().client()
    reply = client.get("/task")
    assert reply.headers["content-type"] == "application/json"
    told = json.dumps([reply.json(), client.post("/vote", json=named(reply.json(), choice="left")).json()], ensure_ascii=False)
    assert "\x1b" not in told
    assert "\\x1b[2J" in told.replace("\\\\", "\\")
    assert "\u202e" not in told


@pytest.mark.parametrize(
    ("kind", "change"),
    by_kinds(
        {"task": "0" * 16},
        {"turn": 1},
        {"choice": "first"},
        {"choice": None},
        {"extra": 1},
        {"turn": "0"},
        {"struck": [["left", "0"]]},
        {"struck": [["up", 0]]},
        {"typed": "x" * 5000},
        {"task": "x" * 100},
    ),
    ids=str,
)
def test_a_vote_that_is_not_for_what_is_open_writes_nothing(opened: Open, kind: ReviewKind, change: dict[str, object]) -> None:
    page = opened(kind=kind)
    client = page.client()
    shown = client.get("/task").json()
    reply = client.post("/vote", json=named(shown, choice=FIRST[kind]) | change)
    assert reply.status_code in (400, 409)
    assert read_votes(page.folder)["anna"] == []
    assert client.get("/task").json() == shown


def test_a_page_of_one_reader_does_not_vote_by_the_cookie_of_another(opened: Open) -> None:
    """Two readers in two tabs of one browser: both have the cookie of whoever came last."""
    page = opened(readers=("anna", "ünal"), overlap=1.0)
    client = page.client()
    shown = client.get("/task").json()
    assert client.get(page.door.invite("ünal")).status_code == 303
    for path, body in (("/vote", named(shown, choice="left")), ("/next", named(shown)), ("/undo", {})):
        reply = client.post(path, json=body)
        assert reply.status_code == 400
        assert "opened the page for ünal since" in reply.json()["error"]
    assert client.get("/task").status_code == 400
    assert read_votes(page.folder) == {"anna": [], "ünal": []}
    client.headers[PAGE_READER] = quote("ünal")
    shown = client.get("/task").json()
    assert client.post("/vote", json=named(shown, choice="left")).status_code == 200
    assert [len(votes) for votes in read_votes(page.folder).values()] == [0, 1]


def test_files_of_other_readers_that_people_change_stop_nobody(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Blank lines, a byte order mark, lines taken out and lines that are no votes, while another process reads."""
    page = opened(20)
    client = page.client()
    with closing(opened(20, readers=("ben",)).session) as other:
        for _ in range(3):
            task = other.open_task("ben")
            assert task is not None
            other.vote("ben", task.task.id, 0, "left")
            other.advance("ben", task.task.id, 0)
    path = page.folder / "votes" / "ben.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    changed = (
        b"\xef\xbb\xbf" + b"\r\n".join(line.strip() for line in lines) + b"\r\n\r\n",
        lines[0],
        b"".join(lines[1:]) + b"no vote\n",
        b"".join(lines),
    )
    for data in changed:
        path.write_bytes(data)
        shown = client.get("/task")
        assert shown.status_code == 200
        client.post("/vote", json=named(shown.json(), choice="left"))
        after = client.post("/next", json=named(shown.json()))
        assert after.status_code == 200
    assert "ben.jsonl has lines that are no votes" in caplog.text
    assert after.json()["task"] not in {json.loads(line)["task_id"] for line in lines}


def test_a_second_vote_on_the_same_task_is_refused(opened: Open) -> None:
    page = opened()
    client = page.client()
    shown = client.get("/task").json()
    assert client.post("/next", json=named(shown)).status_code == 409
    assert client.post("/vote", json=named(shown, choice="left")).status_code == 200
    assert client.post("/vote", json=named(shown, choice="right")).status_code == 409
    assert [vote.event for vote in read_votes(page.folder)["anna"]] == ["vote"]


@pytest.mark.parametrize("beyond", [["left", 99], ["right", -1]])
def test_a_sentence_that_is_not_there_cannot_be_struck(opened: Open, beyond: list[str | int]) -> None:
    page = opened()
    client = page.client()
    shown = client.get("/task").json()
    refused = client.post("/vote", json=named(shown, choice="left", struck=[["left", 0], beyond]))
    assert refused.status_code == 409
    assert "no sentence" in refused.json()["error"]
    assert not any(read_votes(page.folder).values())
    assert client.post("/vote", json=named(shown, choice="left", struck=[["left", 0]])).status_code == 200


@pytest.mark.parametrize(
    ("kind", "body"),
    by_kinds(b"x" * (MAX_BODY + 1), b"{", b"[]", b"\xff\xfe", b'{"task": ' + b"[" * 5000),
    ids=lambda value: value if isinstance(value, str) else len(value),
)
def test_a_body_that_is_too_long_or_no_json_is_refused(opened: Open, kind: ReviewKind, body: bytes) -> None:
    page = opened(kind=kind)
    client = page.client()
    shown = client.get("/task").json()
    as_json = {"Content-Type": "application/json"}
    assert client.post("/vote", content=body, headers=as_json).status_code in (400, 403)
    assert client.post("/vote", content=iter([body] * 2), headers=as_json).status_code in (400, 403)
    assert client.get("/task").json() == shown


def test_a_hundred_readers_at_once_lose_nothing(opened: Open) -> None:
    readers = [f"reader{number}" for number in range(100)]
    # Whoever has voted twice has a third task open.
    page = opened(300, readers=readers, tasks=300)
    clients = {name: page.client(name) for name in readers}
    failures: list[object] = []

    def read(name: str) -> None:
        for _ in range(2):
            shown = clients[name].get("/task").json()
            taken = clients[name].post("/vote", json=named(shown, choice="left"))
            if taken.status_code != 200 or clients[name].post("/next", json=named(shown)).status_code != 200:
                failures.append((name, taken.text))

    threads = [threading.Thread(target=read, args=(name,)) for name in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    votes = read_votes(page.folder)
    assert {name: len(rows) for name, rows in votes.items()} == dict.fromkeys(readers, 2)
    tasks = [vote.task_id for rows in votes.values() for vote in rows]
    assert len(set(tasks)) == len(tasks) == 200


def test_beyond_this_machine_a_password_is_asked_and_cannot_be_guessed_for_long(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert password_of("127.0.0.1", "") is None
    assert password_of("::1", "") is None
    for address, variable in (("0.0.0.0", ""), ("10.0.0.7", "REVIEW_PASSWORD"), ("ward", "")):
        with pytest.raises(StllavaError, match=r"can be reached by other machines|as an address"):
            password_of(address, variable)
    monkeypatch.setenv("REVIEW_PASSWORD", "short")
    with pytest.raises(StllavaError, match="short"):
        password_of("0.0.0.0", "REVIEW_PASSWORD")
    monkeypatch.setenv("REVIEW_PASSWORD", "a long enough one")
    assert password_of("10.0.0.7", "REVIEW_PASSWORD") == "a long enough one"
    assert password_of("0.0.0.0", "REVIEW_PASSWORD", names=("ward7:8765",)) == "a long enough one"
    with pytest.raises(StllavaError, match="no name says what others call it"):
        password_of("0.0.0.0", "REVIEW_PASSWORD")
    page = opened(password="a long enough one")
    client = page.client(enter=False)
    address = page.door.invite("anna")
    assert "Password" in client.get(address).text
    assert client.post(address, data={"password": "guess"}).status_code == 403
    assert client.get("/task").status_code == 401
    assert client.post(address, data={"password": "a long enough one"}).status_code == 303
    assert client.get("/task").status_code == 200
    other = page.client(enter=False)
    again = page.door.invite("anna")
    for _ in range(10):
        assert other.post(again, data={"password": "guess"}).status_code == 403
    assert other.post(again, data={"password": "a long enough one"}).status_code == 403


def test_an_image_that_cannot_be_read_is_told_and_the_vote_goes_on(opened: Open, tmp_path: Path) -> None:
    page = opened()
    path = tmp_path / "images" / page.tasks[0].images[0]
    path.write_bytes(path.read_bytes()[:40])
    client = page.client()
    shown = client.get("/task").json()
    reply = client.get(f"/image/{shown['images'][0]}")
    assert (reply.status_code, reply.json()) == (422, {"error": "The image cannot be read: truncated."})
    assert client.post("/vote", json=named(shown, choice="bad image")).status_code == 200


def test_a_full_disk_is_told_and_the_vote_can_be_given_again(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    page = opened()
    client = page.client()
    shown = client.get("/task").json()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("stllava.review.vote_log.os.fsync", full)
        reply = client.post("/vote", json=named(shown, choice="left"))
        assert reply.status_code == 507
        assert "disk" in reply.json()["error"]
    assert client.get("/task").json() == shown
    assert client.post("/vote", json=named(shown, choice="left")).status_code == 200
    assert len(read_votes(page.folder)["anna"]) == 1


@pytest.mark.parametrize("text", ["A nodule. On the left! 3.5 cm\nYes", "…", "...", " x", "a", "\n\na", "One? Two"])
def test_sentences_are_the_whole_text(text: str) -> None:
    assert "".join(sentences(text)) == text
    assert sentences("A nodule. 3.5 cm.") == ["A nodule. ", "3.5 cm."]
