"""The code blocks of the pages run as they stand, page by page, in a real shell."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.blocks import ROOT
from helpers.judging import JudgeServer, Listening
from helpers.page_runs import PAGE_RUNS, README, PageRun, Ran, run_page
from helpers.quick_commands import quick_commands
from stllava.cli import main
from stllava.records import Outcome, Score
from stllava.store import read_manifest, read_records

pytestmark = pytest.mark.slow


class Pages:
    """Runs each page once, when it is first asked for."""

    def __init__(self, root: Path, programs: Path, server: str) -> None:
        self.root, self.programs, self.server = root, programs, server
        self.ran: dict[str, Ran] = {}

    def run(self, page: str) -> Ran:
        """A page, whose blocks have run."""
        if page not in self.ran:
            text = (ROOT / page).read_text(encoding="utf-8")
            self.ran[page] = self.run_text(text, page, PAGE_RUNS[page])
        return self.ran[page]

    def run_text(self, text: str, page: str, plan: PageRun) -> Ran:
        """A page's text, whose blocks have run."""
        folder = self.root / page.replace("/", "-") / "work"
        if plan.folder:
            shutil.copytree(self.run(plan.folder).folder, folder)
        else:
            folder.mkdir(parents=True)
        return run_page(text, page, plan, folder, programs=self.programs, server=self.server)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """Pages that are run with programs that answer at once, and a server that judges."""
    root = tmp_path_factory.mktemp("pages")
    with quick_commands(root / "bin") as programs, Listening(JudgeServer()) as listening:
        yield Pages(root, programs, listening.url)


@pytest.mark.parametrize("page", PAGE_RUNS)
def test_the_blocks_of_a_page_run_as_they_stand(page: str, pages: Pages) -> None:
    assert pages.run(page).said


def test_the_readmes_recipe_means_the_same_from_another_folder(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = pages.run(README)
    (shown,) = (said for text, said in readme.said.items() if "stllava run my-recipe.yaml" in text)
    run = readme.folder / "runs" / "my-hospital-0"
    outcome = Outcome.model_validate_json((run / "outcome.json").read_bytes())
    assert "round-1" in outcome.policies
    assert {score.benchmark for score in outcome.scores} == {"test", "validation"}
    monkeypatch.chdir(tmp_path)
    main(["run", str(readme.folder / "my-recipe.yaml"), "--to", str(run), "--rounds", "2"])
    assert capsys.readouterr().out.splitlines()[:-1] == shown.splitlines()[:-1]


def test_the_readmes_loop_by_hand_makes_pairs_and_scores(pages: Pages) -> None:
    hand = pages.run(README).folder / "hand"
    assert read_manifest(hand / "pair").counts_out > 0
    assert {one.metric for one in read_records(hand / "scores", "scores", Score)} >= {"closed_accuracy"}
    assert read_manifest(hand / "questions").counts_out > 0


SOUND = """
```sh
export WORD=seen
stllava --version | head -n 1
```

<!-- needs: a word that is not here -->

```sh
exit 3
```

```python
x = 1
```

```python
from pathlib import Path

Path("said").write_text(str(x))
```

```sh
echo $WORD $(cat said)
```
"""


def test_what_a_block_leaves_behind_is_there_for_the_next_one_and_a_marked_one_is_left_out(pages: Pages) -> None:
    assert [*pages.run_text(SOUND, "sound.md", PageRun()).said.values()][-1] == "seen 1\n"


@pytest.mark.parametrize(
    ("language", "line"),
    [("sh", "stllava pair --answers gone --judgments gone --to x"), ("sh", "false | true"), ("python", "assert False")],
    ids=["a user's error", "in a pipe", "in Python"],
)
def test_a_block_that_fails_is_told_with_file_and_line(language: str, line: str, pages: Pages, tmp_path: Path) -> None:
    page = f"{tmp_path.name}.md"
    with pytest.raises(AssertionError, match=rf"{page}:3 ended with [12]:"):
        pages.run_text(f"Words.\n\n```{language}\n{line}\n```\n", page, PageRun())
