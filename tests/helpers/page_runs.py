"""Runs the blocks of a page as they stand, in order, in a folder that holds what the page's reader has by then.

`PAGE_RUNS` says of every page what that is, and with which flags a command is made small. Blocks with a mark are left out.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conftest import TINY
from helpers.blocks import ROOT, RUN, blocks_of
from helpers.hospital import build_hospital
from helpers.quick_commands import MORE_FLAGS
from helpers.reviewing import vote_on
from stllava.config import ReviewOptions
from stllava.records import ReviewTask
from stllava.review.label_studio import shown_data
from stllava.review.round_files import find_round
from stllava.review.tasks import draw_tasks
from stllava.review.vote_log import VoteLog
from stllava.store import write_whole

SERVER = "http://127.0.0.1:8000/v1"
"""Where pages say that an expert listens; the tests' own listens on a port that is free."""
SMALL_MODEL = [word for name, value in TINY.model_dump().items() for word in (f"--small.{name.replace('_', '-')}", str(value))]
SMALL_RUN = shlex.split(
    """
    --data.labelled 6 --data.unlabelled 20 --data.validation 3 --data.test 3 --data.size 64
    --small.image-size 32 --small.patch-size 16 --small.vision-width 32 --small.vision-layers 1 --small.language-width 32
    --small.language-layers 2 --small.heads 2
    --sft.epochs 60 --sft.batch-size 4 --sft.learning-rate.language 5e-3 --sft.learning-rate.projector 5e-3
    --sft.learning-rate.vision 5e-3
    --ask.questions 4 --ask.sampling.temperature 0.4 --ask.sampling.max-new-tokens 16 --ask.borrow-questions 2
    --answer.num-answers 6 --answer.sampling.temperature 2 --answer.sampling.max-new-tokens 8
    --pair.no-balance --dpo.epochs 1 --final-sft.epochs 1 --rounds 1
    """
)
"""The demo in seconds."""
SHORT_TRAINING = shlex.split("--rounds 1 --sft.epochs 1 --final-sft.epochs 1")
FROM_THE_DEMO = shlex.split(
    """
    --model runs/phantom-0/sft --sft.epochs 1 --sft.learning-rate.language 1e-6 --sft.learning-rate.projector 0
    --sft.learning-rate.vision 0
    """
)
"""Stage 1 is that of the demo, and hardly more."""
SMALL_LOAD = shlex.split("--load.questions 2 --load.answers 2")
Shell = Callable[[str], str]
"""Runs lines of a shell in the page's folder."""


@dataclass(frozen=True)
class PageRun:
    """What a page's blocks find."""

    folder: str = ""
    """The page after whose blocks this one's begin, in a copy of its folder; empty: in an empty folder."""
    build: Callable[[Path, Shell], None] | None = None
    """Writes into the folder what the reader has besides."""
    more_flags: Mapping[str, list[str]] = field(default_factory=dict)
    """Flags that make a command small, by command."""


@dataclass(frozen=True)
class Ran:
    """A page whose blocks have run."""

    folder: Path
    said: Mapping[str, str]
    """What each block wrote on its standard output, by its text."""


def hospital(folder: Path, shell: Shell) -> None:
    """The files of README's recipe."""
    build_hospital(folder)


def run_called_mine(folder: Path, shell: Shell) -> None:
    """README's run under the name that other pages give it."""
    shutil.copytree(folder / "runs" / "my-hospital-0", folder / "runs" / "mine")


def new_questions(folder: Path, shell: Shell) -> None:
    """README's files without its run, and a table of questions to answer."""
    shutil.rmtree(folder / "runs")
    write_whole(folder / "new.csv", "image,question\nnew/0.png,is it ct?\nnew/3.png,is it left?\n")


def moved_stages(folder: Path, shell: Shell) -> None:
    """The stages of README's loop by hand beside the images, and no answers yet."""
    (folder / "hand" / "sft").rename(folder / "sft")
    (folder / "hand" / "ask").rename(folder / "ask")


def nothing_answered(folder: Path, shell: Shell) -> None:
    """README's loop by hand before its answers, and README's run; the benches of the checkout."""
    run_called_mine(folder, shell)
    shutil.rmtree(folder / "hand" / "answer")
    (folder / "bench").symlink_to(ROOT / "bench")


def measured(folder: Path, shell: Shell) -> None:
    """A policy, a table of questions, an evaluation, answers that another program logged, and runs of other seeds."""
    shutil.copytree(folder / "hand" / "dpo", folder / "my-policy")
    rows = [(f"{number}.png", "what is seen?", ("an effusion", "a nodule")[number % 2]) for number in (1, 2, 4, 5)]
    rows += [(f"{number}.png", "is it ct?", ("yes", "no")[number % 2]) for number in (1, 2, 4, 5)]
    write_whole(folder / "test.csv", "\n".join(["image,question,answer", *map(",".join, rows), ""]))
    shutil.copy(folder / "test.csv", folder / "vqa-rad.csv")
    log = [
        {
            "doc_id": number,
            "doc": {"question": question, "answer": answer, "image_id": image},
            "target": answer,
            "input": question,
            "resps": [["yes"]],
            "filtered_resps": ["yes"],
        }
        for number, (image, question, answer) in enumerate(rows)
    ]
    write_whole(folder / "samples_vqa_rad.jsonl", "".join(json.dumps(row) + "\n" for row in log))
    shell("stllava evaluate --policy my-policy --samples vqa-rad.csv --root images --to scores/vqa-rad")


def measured_runs(folder: Path, shell: Shell) -> None:
    """The same, with the evaluation that another page makes, and four runs."""
    measured(folder, shell)
    shell("stllava evaluate --policy my-policy --samples test.csv --root images --to scores/mine")
    for name in ("a-0", "a-1", "a-2", "b-0"):
        shutil.copytree(folder / "runs" / "my-hospital-0", folder / "runs" / name)


def read_round(folder: Path, shell: Shell) -> None:
    """README's run, of whose last round two readers have read the verdicts, and other verdicts in Label Studio."""
    run_called_mine(folder, shell)
    found = find_round(folder / "runs" / "mine")
    tasks = draw_tasks(ReviewOptions(), answers=found.answers, judgments=found.judgments, to=found.review)
    for reader in ("anna", "ben"):
        log = VoteLog(found.review, reader)
        for number, task in enumerate(tasks, 1):
            log.append(vote_on(task, task.verdict, reader=reader, number=number))
        log.close()
    write_whole(folder / "export.json", json.dumps([labelled(task) for task in tasks]))


def labelled(task: ReviewTask) -> dict[str, object]:
    """A task as Label Studio exports it."""
    result = [{"id": "x", "type": "choices", "from_name": "vote", "to_name": "image", "value": {"choices": ["equal"]}}]
    made = {"id": 3, "completed_by": 7, "result": result, "lead_time": 4.0, "created_at": "2026-11-20T10:15:00Z"}
    return {"id": 1, "data": {"task_id": task.id, **shown_data(task)}, "annotations": [made | {"was_cancelled": False}]}


def table_of_mine(folder: Path, shell: Shell) -> None:
    """The file that the benchmark of the page reads."""
    write_whole(folder / "mine" / "mine.tsv", "a.png\twhat?\ta lung\n")


README, STARTED = "README.md", "docs/getting-started.md"
PAGE_RUNS: dict[str, PageRun] = {
    README: PageRun(build=hospital, more_flags={"sft": SMALL_MODEL, "run": ["--rounds", "2"]}),
    STARTED: PageRun(folder=README, more_flags={"demo": SMALL_RUN}),
    "docs/install.md": PageRun(folder=STARTED, more_flags={"demo": SMALL_RUN, "doctor": SMALL_LOAD}),
    "docs/guides/own-model.md": PageRun(
        folder=README, build=new_questions, more_flags={"run": SHORT_TRAINING, "doctor": SMALL_LOAD}
    ),
    "docs/guides/judge-server.md": PageRun(folder=README),
    "docs/guides/evaluate.md": PageRun(folder=README, build=measured),
    "docs/guides/several-gpus.md": PageRun(folder=README, build=moved_stages),
    "docs/evaluation.md": PageRun(folder=README, build=measured_runs),
    "docs/expert.md": PageRun(folder=README, build=run_called_mine),
    "docs/review.md": PageRun(folder=README, build=read_round),
    "docs/scaling.md": PageRun(folder=README, build=nothing_answered),
    "docs/self-training.md": PageRun(folder=STARTED, more_flags={"run": [*SMALL_RUN, *FROM_THE_DEMO]}),
    "docs/extending.md": PageRun(build=table_of_mine),
}
"""Pages with blocks that are run, in an order in which each comes after those that it goes on from."""
ELSEWHERE = {"docs/images.md": "tests/test_quickstart.py", "docs/guides/dicom.md": "tests/test_quickstart.py"}
"""Pages whose blocks a test of their own runs."""


def run_page(text: str, page: str, plan: PageRun, folder: Path, *, programs: Path, server: str) -> Ran:
    """Run what is not marked of a page; an error names the block by file and line.

    Args:
        text: The page.
        page: Its path in the repository.
        plan: What its blocks find.
        folder: Where it is run, with what the reader has.
        programs: Folder of `quick_commands`.
        server: Address of a server that judges, in place of the one that pages name.
    """
    work = folder.parent / f"{folder.name}-blocks"
    work.mkdir()
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(work),
        "TRACKIO_DIR": str(work / "trackio"),
        MORE_FLAGS: json.dumps(plan.more_flags),
    }

    def shell(lines: str, place: str = f"what {page} needs") -> str:
        # What a block exports, the next one finds.
        exports = shlex.quote(str(work / "exports.sh"))
        script = f"[ ! -f {exports} ] || . {exports}\n{lines.replace(SERVER, server)}\nexport -p > {exports}"
        words = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{place} ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    blocks = list(blocks_of(text, page))
    for block in blocks:
        if block.language == "yaml" and block.text.startswith("name:"):
            write_whole(folder / "my-recipe.yaml", block.text)
    if plan.build is not None:
        plan.build(folder, shell)
    said, python = {}, ""
    for block in blocks:
        if block.language not in RUN or block.needs:
            continue
        lines = block.text
        if block.language == "python":
            python += f"\n{block.text}"  # a page's blocks build on each other
            write_whole(work / "block.py", python)
            lines = f"python {shlex.quote(str(work / 'block.py'))}"
        said[block.text] = shell(lines, block.place)
    return Ran(folder, said)
