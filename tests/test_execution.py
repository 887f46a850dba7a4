"""A run's chunks in other processes: the bytes of one process, whoever dies on the way."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from conftest import TINY
from helpers.ending import assert_all_end
from helpers.fatal_work import IMAGES, LOCAL, FatalWork, copy
from helpers.judging import answers_of, write_answers
from stllava.config import DistilledOptions, JudgeOptions, LocalExpertOptions
from stllava.config.execution import ExecutionOptions
from stllava.errors import StllavaError
from stllava.execution import Workforce, worker_processes, working
from stllava.execution.worker_processes import ProcessCrew, ProcessWorker
from stllava.execution.workforce import ChunkBench, Reply, Worker, WorkerStart
from stllava.experts.backends import local_model
from stllava.experts.backends.local_model import LocalBackend, LocalExpertWork
from stllava.experts.distilled_judge import DistilledWork
from stllava.experts.model.reply_log import Exchange, JudgeRequest
from stllava.model.small import build_small
from stllava.pipeline import run
from stllava.recipe import RunOptions
from stllava.records import Answers, Image
from stllava.stages.judge import judge
from stllava.store import MANIFEST, PARTS, read_manifest

RAY = ExecutionOptions(kind="ray", workers=2)


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of these tests need no torch to begin with, and Ray's find the work of these tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(worker_processes, "PRELOADED", ("helpers.fatal_work",))


def test_two_workers_give_the_bytes_of_one_process(tmp_path: Path) -> None:
    copy(tmp_path / "one", FatalWork(tmp_path / "tries-1"))
    copy(tmp_path / "two", FatalWork(tmp_path / "tries-2"), LOCAL)
    assert (tmp_path / "one" / "images.jsonl").read_bytes() == (tmp_path / "two" / "images.jsonl").read_bytes()
    one, two = (read_manifest(tmp_path / name) for name in ("one", "two"))
    assert (one.dropped, one.notes, one.device) == (two.dropped, two.notes, two.device)
    workers = set((tmp_path / "tries-2" / "workers.txt").read_text().split())
    assert len(workers) == 2
    assert str(os.getpid()) not in workers


def test_a_worker_that_dies_loses_its_chunk_alone_which_is_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy(tmp_path / "one", FatalWork(tmp_path / "tries-1"))
    copy(tmp_path / "two", FatalWork(tmp_path / "tries-2", deaths=(("i4", 2), ("i16", 1))), LOCAL)
    assert (tmp_path / "one" / "images.jsonl").read_bytes() == (tmp_path / "two" / "images.jsonl").read_bytes()
    assert sum("A worker was lost" in record.message for record in caplog.records) == 3
    assert len((tmp_path / "tries-2" / "workers.txt").read_text().split()) == 7


@pytest.mark.parametrize(
    ("execution", "how"),
    [
        pytest.param(LOCAL, "dies", id="dies"),
        pytest.param(LOCAL, "raises", id="raises"),
        pytest.param(RAY, "dies", id="ray", marks=pytest.mark.slow),
    ],
)
def test_a_chunk_that_costs_three_workers_is_set_aside_with_its_cause_and_the_rest_is_done(
    execution: ExecutionOptions, how: str, tmp_path: Path
) -> None:
    tries = tmp_path / "tries"
    made = copy(
        tmp_path / "two", FatalWork(tries, (("i4", 99),) if how == "dies" else (), raises="i4" * (how == "raises")), execution
    )
    assert len(list(tries.glob("i4.*"))) == (3 if how == "dies" else 0)
    manifest = read_manifest(tmp_path / "two")
    assert manifest.dropped == {"unlucky": 2, "worker lost": 3}
    assert manifest.counts_out == 15
    assert any("3 items were set aside because 3 workers were lost with them" in note for note in manifest.notes)
    words = "out of memory, say" if how == "raises" else ("SIGKILL" if execution.kind == "local" else "died")
    assert words in made.dropped.examples["worker lost"]


def test_an_error_that_the_user_can_put_right_ends_the_stage_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="no such server; expected one"):
        copy(tmp_path / "two", FatalWork(tmp_path / "tries", refuses="i7"), LOCAL)
    assert not multiprocessing.active_children()
    copy(tmp_path / "two", FatalWork(tmp_path / "tries"), LOCAL)


def copied(workforce: Workforce, work: FatalWork, chunks: int) -> list[int]:
    """Copy so many chunks of one image; the indices of those that were not set aside."""
    tasks = iter([(number, [image]) for number, image in enumerate(IMAGES[:chunks])])
    return [index for index, done in workforce.map(work, tasks, record_type=Image) if "worker lost" not in done.dropped]


def test_workers_that_died_between_two_stages_cost_no_chunk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workforce = Workforce(ProcessCrew(ExecutionOptions(workers=4)), workers=4)
    work = FatalWork(tmp_path)
    try:
        assert sorted(copied(workforce, work, 6)) == list(range(6))
        died = [cast(ProcessWorker, worker) for worker in workforce._workers.values()]
        for worker in died:
            worker.process.kill()
        assert sorted(copied(workforce, work, 2)) == [0, 1]
    finally:
        workforce.close()
    assert sum("lost while it had nothing to do" in record.message for record in caplog.records) == len(died)


class SilentPlaces:
    """A crew whose workers beyond the first never start, as on a cluster without room for them."""

    def __init__(self) -> None:
        self.hired = 0

    def hire(self, place: int) -> "AtOnce":
        self.hired += 1
        return AtOnce(starts=place == 0)

    def wait(self, workers: Sequence[Worker]) -> list[Worker]:
        ready = [worker for worker in workers if cast(AtOnce, worker).said is not None]
        assert ready, "it would wait for ever"
        return ready

    def close(self) -> None:
        pass


class AtOnce:
    """A worker of the crew above, which does a chunk as it is given."""

    def __init__(self, *, starts: bool) -> None:
        self.said: Reply | None = WorkerStart() if starts else None
        self._bench = ChunkBench()

    def greet(self) -> None:
        self.said = WorkerStart()

    def give(self, key: str, work: bytes, chunk: bytes) -> bool:
        self._bench.take_up(key, work)
        self.said = self._bench.run(chunk)
        return True

    def reply(self) -> Reply:
        said, self.said = self.said, None
        assert said is not None
        return said

    def rest(self) -> None:
        pass

    def dismiss(self) -> None:
        pass


@pytest.mark.parametrize(("chunks", "hired"), [(0, 0), (1, 1), (5, 3)])
def test_places_that_never_start_are_not_waited_for_and_no_more_are_hired_than_there_are_chunks(
    tmp_path: Path, chunks: int, hired: int
) -> None:
    crew = SilentPlaces()
    assert copied(Workforce(crew, workers=3), FatalWork(tmp_path), chunks) == list(range(chunks))
    assert crew.hired == hired


def test_workers_that_cannot_start_end_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "_serve", sys.exit)
    with pytest.raises(StllavaError, match="3 workers in a row ended before they began: it ended with exit code 1"):
        copy(tmp_path / "two", FatalWork(tmp_path / "tries"), LOCAL)


def test_more_workers_than_gpus_are_refused_and_each_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stllava.model.device.visible_gpus", lambda: ["2", "3", "5"])
    with pytest.raises(StllavaError, match="workers to 3"):
        ProcessCrew(ExecutionOptions(workers=4))
    assert ProcessCrew(ExecutionOptions(workers=3))._gpus == [["2"], ["3"], ["5"]]


@pytest.mark.slow
@pytest.mark.parametrize(("pause", "noted_in"), [(0.01, "workers.txt"), (60.0, "begun.txt")], ids=["", "in a long chunk"])
def test_a_run_that_is_killed_leaves_no_worker_behind(tmp_path: Path, pause: float, noted_in: str) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from helpers.fatal_work import LOCAL, FatalWork, copy\n"
        "if __name__ == '__main__': "
        f"copy(Path(sys.argv[1]) / 'two', FatalWork(Path(sys.argv[1]) / 'tries', pause={pause}), LOCAL)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *sys.path], stderr=subprocess.DEVNULL) as process:
        noted = tmp_path / "tries" / noted_in
        while process.poll() is None and not (noted.is_file() and noted.read_text().strip()):
            time.sleep(0.01)
        workers = [int(pid) for pid in noted.read_text().split()]
        process.kill()
    assert_all_end(workers, seconds=10)


@pytest.fixture(scope="module")
def judging_model(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """An untrained LLaVA whose context holds a judge's prompt in its short tokens."""
    folder = tmp_path_factory.mktemp("expert") / "model"
    build_small(TINY.model_copy(update={"context": 8192}), conversations=phantoms / "conversations.jsonl", to=folder, seed=3)
    (folder / MANIFEST).unlink()  # A model that no stage made may be a judge.
    return folder


def asked_about(count: int) -> list[Answers]:
    """So many questions about four images, the last of which is gone, with two answers each."""
    images = [*(f"unlabelled/{number:05d}.png" for number in range(3)), "gone.png"]
    return [answers_of(f"what is at {number}?", ("a nodule", "a mass"), image=images[number % 4]) for number in range(count)]


def test_a_distilled_judge_behind_two_workers_gives_the_bytes_of_one_process(
    judging_model: Path, phantoms: Path, tmp_path: Path
) -> None:
    answers = write_answers(tmp_path / "answers", asked_about(6))
    distilled = DistilledOptions(model=str(judging_model))
    options = JudgeOptions(expert="distilled", distilled=distilled, chunk=2, max_failed=0.5)
    for name, execution in (("one", ExecutionOptions()), ("two", LOCAL)):
        with working(execution):
            judge(options, answers=answers, root=phantoms / "images", to=tmp_path / name)
    one, two = (tmp_path / name / "judgments.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert len(one.read_bytes().splitlines()) == 6


@pytest.mark.slow
def test_a_local_expert_behind_two_workers_replies_what_it_does_in_one_process(
    judging_model: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_model, "TOGETHER", 2)
    backend = LocalBackend(LocalExpertOptions(model=str(judging_model), max_new_tokens=6), root=phantoms / "images")
    requests = [
        JudgeRequest(f"{number:016x}", row.id, (0, 1), 0, row.question, row.images, {})
        for number, row in enumerate(asked_about(6))
    ]
    replied: list[dict[str, tuple[str | None, str | None]]] = []
    for execution in (ExecutionOptions(), LOCAL):
        exchanges: list[Exchange] = []
        with working(execution):
            backend.ask(iter(requests), exchanges.append)
        replied.append({one.id: (one.body, one.failure) for one in exchanges})
    assert replied[0] == replied[1]
    assert len(replied[0]) == 6
    assert [one for one, (body, _) in replied[0].items() if body is None] == [requests[3].id]


def test_what_no_worker_can_judge_has_no_verdict_and_its_cause(judging_model: Path, phantoms: Path) -> None:
    [row] = asked_about(1)
    request = JudgeRequest("0" * 16, row.id, (0, 1), 0, row.question, row.images, {})
    local = LocalExpertWork(LocalExpertOptions(model=str(judging_model)), phantoms / "images", "model")
    [exchange], _ = local.set_aside([request], "killed by SIGKILL")
    assert (exchange.body, exchange.failure) == (None, "worker lost: killed by SIGKILL")
    distilled = DistilledWork(DistilledOptions(model=str(judging_model)), phantoms / "images")
    [shares], _ = distilled.set_aside([row], "killed by SIGKILL")
    assert (shares.id, shares.failure) == (row.id, "worker lost: killed by SIGKILL")


def loop(**changed: object) -> RunOptions:
    """A loop of some seconds in small chunks."""
    rates = {"language": 3e-3, "projector": 3e-3, "vision": 3e-3}
    values: dict[str, object] = {
        "name": "tiny",
        "data": {"kind": "phantom", "labelled": 8, "unlabelled": 6, "validation": 3, "test": 3, "size": 64},
        "small": TINY.model_dump(),
        "sft": {"epochs": 40, "batch_size": 4, "save_steps": 0, "learning_rate": rates},
        "ask": {
            "questions": 3,
            "chunk": 1,
            "sampling": {"temperature": 0.6, "max_new_tokens": 16},
            "description_sampling": {"max_new_tokens": 16},
        },
        "answer": {"num_answers": 4, "chunk": 4, "sampling": {"temperature": 2.0, "max_new_tokens": 8}},
        "judge": {"expert": "scripted", "scripted": {"prefer": ["no", "yes", "ct", "mr", "x", "left", "right", "chest"]}},
        "pair": {"balance": False, "margin": 0.01, "min_chosen_score": 0.0, "max_denial_share": 1.0},
        "dpo": {"epochs": 1, "batch_size": 4, "save_steps": 0, "learning_rate": dict.fromkeys(rates, 1e-3)},
        "evaluate": {"chunk": 4, "sampling": {"temperature": 0, "max_new_tokens": 8}},
        "final_sft": None,
        "baselines": False,
        "rounds": 1,
    }
    return RunOptions.model_validate(values | changed)


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file of records and weights of a run."""
    files = sorted(path for pattern in ("*.jsonl", "*.safetensors", "outcome.json") for path in folder.rglob(pattern))
    kept = [path for path in files if "exchanges" not in path.parts]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


class Killer(threading.Thread):
    """Kills a worker once in every stage that has them, as soon as its first chunk is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.struck, self.over = folder, list[str](), False

    def run(self) -> None:
        """Look until the run is over."""
        while not self.over:
            for parts in self._at_work():
                name = parts.parent.relative_to(self.folder).as_posix()
                if name not in self.struck and (children := list(self._workers())):
                    os.kill(children[len(self.struck) % len(children)], 9)
                    self.struck.append(name)
            time.sleep(0.001)

    def _at_work(self) -> list[Path]:
        try:
            return [parts for parts in self.folder.rglob(PARTS) if any(parts.glob("*.jsonl"))]
        except FileNotFoundError:  # A stage that has just ended removes what it is looked at.
            return []

    def _workers(self) -> Iterator[int]:
        """Process ids of the workers: those of multiprocessing, and Ray's actors below this process."""
        yield from (child.pid for child in multiprocessing.active_children() if child.pid is not None)
        for stat in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = stat.read_bytes()
            except OSError:
                continue
            if words.startswith(b"ray::ChunkBench"):
                yield int(stat.parent.name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(loop(), to=folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("execution", [LOCAL, RAY], ids=["local", "ray"])
def test_a_run_with_two_workers_one_killed_in_each_stage_gives_the_bytes_of_one_process(
    execution: ExecutionOptions, alone: Path, tmp_path: Path
) -> None:
    killer = Killer(tmp_path / "run")
    killer.start()
    run(loop(execution=execution), to=tmp_path / "run")
    killer.over = True
    killer.join()
    assert {name.split("/")[0] for name in killer.struck} == {"round-1", "evaluate"}
    assert contents(tmp_path / "run") == contents(alone)
    assert (tmp_path / "run" / MANIFEST).is_file()
    # Where the chunks were worked on is no part of the run: it is read back by one process.
    assert run(loop(), to=tmp_path / "run").best
