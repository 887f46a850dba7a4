"""What docs/numbers.md says of VQA-RAD, on VQA-RAD itself."""

import json
import os
import re
from pathlib import Path

import pytest

from stllava.data.benchmarks import read_benchmark
from stllava.data.benchmarks.rows import told_kind
from stllava.metrics.score import score
from stllava.records import Prediction

PAGE = Path(__file__).resolve().parent.parent / "docs" / "numbers.md"


@pytest.mark.skipif(not os.environ.get("STLLAVA_VQA_RAD"), reason="STLLAVA_VQA_RAD is not set")
def test_the_way_of_counting_moves_a_model_that_always_says_no_by_what_the_page_says() -> None:
    samples = read_benchmark("vqa-rad", Path(os.environ["STLLAVA_VQA_RAD"]), splits=("test",)).splits["test"]
    always = [Prediction.of(one, "no", policy="no") for one in samples]
    ours = {one.metric: one for one in score(always, policy="no", benchmark="vqa-rad")}["closed_accuracy"]
    hubs_rows = [one.model_copy(update={"kind": told_kind(one.targets)}) for one in always]
    hubs = {one.metric: one for one in score(hubs_rows, policy="no", benchmark="vqa-rad")}["closed_accuracy"]
    assert (ours.n, hubs.n) == (272, 251)
    told = re.findall(r"^\| (\d+) closed, \d+ open [^|]*\| ([\d.]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert told == [(str(one.n), f"{100 * one.value:.1f}") for one in (ours, hubs)]


def test_the_prompt_and_the_judge_move_a_score_by_what_the_page_says() -> None:
    result = json.loads((PAGE.parent.parent / "bench" / "results" / "why_numbers_differ-cpu.json").read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    told = sorted(re.findall(r"^\| .*`\{?[^|]*` \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE))
    shown = [
        [row[metric]["score"][0] for metric in ("closed_accuracy", "open_exact_match")] for row in result["prompts"].values()
    ]
    assert told == sorted(tuple(f"{value:.1f}" for value in row) for row in shown)
    judges = re.findall(r"^\| (?:never wrong|wrong about \d+ %) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert judges == [f"{row['score'][0]:.1f}" for row in result["judges"].values()]
    assert result["commit"][:7] in text
