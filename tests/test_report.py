"""The report page, on a small made-up run directory with drawn images."""

import base64
import dataclasses
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pytest
from PIL import Image

from stllava.config import JudgeOptions, Options
from stllava.data.sources import PhantomData
from stllava.errors import StllavaError
from stllava.metrics.score import METRICS as SCORED
from stllava.metrics.score import is_right, values
from stllava.recipe import RunOptions
from stllava.records import (
    Answers,
    Difference,
    Judgment,
    Lineage,
    Message,
    Outcome,
    Prediction,
    Preference,
    Question,
    Record,
    Sampling,
    Score,
    content_id,
)
from stllava.report import run_files
from stllava.report.charts import Dot, Line, interval_chart, line_chart, nice_ticks, spread
from stllava.report.gallery import self_asked, thumbnail
from stllava.report.notebook import show_run
from stllava.report.page import write_report
from stllava.report.run_files import read_run_files
from stllava.report.verdicts_spent import verdicts_spent
from stllava.report.wording import CHIEF, METRICS, measure, percent, points
from stllava.store import Stage, read_manifest, read_records, remove_folder, write_whole

HOT = Sampling(temperature=1.5, top_k=100, top_p=0.95, max_new_tokens=64, seed=0)
FINDINGS = ("nodule", "effusion", "mass", "consolidation", "hemorrhage", "opacity")
SIDES = ("left", "right")
R = TypeVar("R", bound=Record)
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"


class NoOptions(Options):
    """A stage without options."""


@dataclass(frozen=True)
class Made:
    """A run directory and what was put into it."""

    run: Path
    outcome: Outcome


def draw(path: Path, seed: int) -> None:
    """A grey disk with a bright spot and speckle: enough to look like a scan at thumbnail size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    body = 70.0 * ((x / 0.85) ** 2 + (y / 0.95) ** 2 < 1)
    for side in (-1, 1):
        body -= 45.0 * (((x - side * 0.38) / 0.27) ** 2 + ((y + 0.05) / 0.6) ** 2 < 1)
    a, b = rng.uniform(-0.5, 0.5, 2)
    body += 110.0 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((body + rng.normal(20, 6, body.shape)).clip(0, 255).astype(np.uint8)).save(path)


def stage(name: str, to: Path) -> Stage:
    made = JudgeOptions() if name == "judge" else NoOptions()
    return Stage(name, to, made, inputs={}, existing="error")


def wave(n: int, start: float, end: float, seed: int) -> list[tuple[float, float]]:
    """A noisy curve from start to end."""
    rng = np.random.default_rng(seed)
    return [
        (float(step), float(end + (start - end) * math.exp(-4 * step / n) + rng.normal(0, abs(start - end) / 20)))
        for step in range(1, n + 1)
    ]


def build_round(run: Path, number: int, images: list[str], *, pairs: bool = True) -> None:
    """One round: every tenth verdict is an abstention, every fifth a tie."""
    folder, rng = run / f"round-{number}", np.random.default_rng(number)
    questions, answers, judgments, preferences = [], [], [], []
    causes: Counter[str] = Counter()
    for place, path in enumerate(images):
        finding, side = FINDINGS[int(rng.integers(6))], SIDES[int(rng.integers(2))]
        text = f"On which side is the {finding}?" if place % 2 else f"Is there a {finding} in the {side} lung?"
        right, wrong = (side, SIDES[side == "left"]) if place % 2 else ("yes", "no")
        ask = Question(
            id=content_id(number, path), images=(path,), text=text, policy="p", sampling=HOT,
            description=f"Chest X-ray, frontal view, with a {finding} on the {side}.",
        )  # fmt: skip
        said = (right, wrong, right, EVIL if place == 0 else f"the {finding} is on the {side}")
        given = Answers(
            id=content_id(ask.id), question_id=ask.id, images=(path,), question=text, completions=said, policy="p", sampling=HOT
        )
        abstained, tie = place % 10 == 9, place % 5 == 3
        judged = Judgment(
            id=content_id(given.id),
            answers_id=given.id,
            scores=None if abstained else (0.5,) * 4 if tie else (1.0, 0.0, 1.0, 0.5),
            cause="abstained" if abstained else None,
            reason="The truth does not decide this." if abstained else f"The phantom has a {finding} on the {side}.",
            expert="oracle",
            prompt_hash="h",
        )
        questions.append(ask)
        answers.append(given)
        judgments.append(judged)
        causes["no verdict"] += abstained
        causes["tie"] += tie and not abstained
        if pairs and not abstained and not tie:
            chosen, rejected = said[0], said[1]
            lineage = Lineage(question_id=ask.id, answers_id=given.id, judgment_id=judged.id)
            prompt = (Message(role="user", content=text),)
            preferences.append(
                Preference(
                    id=content_id(judged.id), images=(path,), prompt=prompt, chosen=chosen, rejected=rejected,
                    margin=1.0, lineage=lineage,
                )
            )  # fmt: skip
    made = stage("ask", folder / "ask")
    made.write_records("questions", questions)
    made.finish(
        counts_in=len(images) + 5, counts_out=len(images), dropped={"repeated": 4, "empty": 1}, measures={"valid_share": 0.953}
    )
    made = stage("answer", folder / "answer")
    made.write_records("answers", answers)
    made.finish(counts_in=len(images), counts_out=len(images), measures={"distinct_answers": 3.1})
    made = stage("judge", folder / "judge")
    made.write_records("judgments", judgments)
    made.finish(counts_in=len(images), counts_out=len(images), measures={"verdict_share": 0.9})
    made = stage("pair", folder / "pair")
    made.write_records("preferences", preferences)
    made.finish(counts_in=len(images), counts_out=len(preferences), dropped=causes if pairs else {"tie": len(images)})
    if pairs:
        curves = {
            "loss": wave(120, 1.4 - 0.1 * number, 0.7 - 0.1 * number, number),
            "reward_accuracy": [(step, min(max(value, 0.0), 1.0)) for step, value in wave(120, 0.45, 0.86, number + 9)],
            "reward_margin": wave(120, -0.05, 1.1 + 0.2 * number, number + 20),
            "chosen_logp": wave(120, -9.0, -5.5 + number / 2, number + 30),
        }
        stage("dpo", folder / "dpo").finish(counts_in=len(preferences), counts_out=1, curves=curves, device="cpu")


def build_predictions(run: Path, policy: str, benchmark: str, images: list[str], skill: float) -> None:
    rng = np.random.default_rng(len(policy) + len(benchmark))
    rows = []
    for place, path in enumerate(images):
        finding, side = FINDINGS[place % 6], SIDES[place // 6 % 2]
        kind: Literal["open", "closed"] = "closed" if place % 3 == 0 else "open"
        target = "yes" if kind == "closed" else f"{side} lung"
        wrong = "no" if kind == "closed" else f"{SIDES[side == 'left']} lung"
        rows.append(
            Prediction(
                id=content_id(policy, benchmark, place), sample_id=f"{benchmark}-{place}", image=path, targets=(target,),
                question=f"Does this image show a {finding}?" if kind == "closed" else f"Where is the {finding} located?",
                kind=kind, completion=target.capitalize() + "." if rng.random() < skill else wrong, policy=policy,
            )
        )  # fmt: skip
    made = stage("evaluate", run / "evaluate" / policy / benchmark)
    made.write_records("predictions", rows)
    made.finish(counts_in=len(rows), counts_out=len(rows))


def build(run: Path, *, images: int = 24, rounds: int = 2, pairs: bool = True) -> Made:
    """A finished run; without `pairs` it stopped in round 1 because there were none."""
    options = RunOptions(name="phantom <demo>", seed=7, data=PhantomData(test=images))
    Stage("run", run, options, inputs={}, existing="resume")
    paths = [f"test/{place:03}.png" for place in range(images)]
    data = stage("data", run / "data")
    for place, path in enumerate(paths):
        draw(run / "data" / "images" / path, place)
    data.finish(counts_in=images, counts_out=images, image_root=data.to / "images")
    stage("sft", run / "sft").finish(
        counts_in=100, counts_out=1, curves={"loss": wave(150, 5.2, 0.4, 0)}, measures={"trained_tokens": 20133}
    )
    policies = ("sft", *(f"round-{number}" for number in range(1, rounds + 1))) if pairs else ("sft",)
    for number in range(1, len(policies) if pairs else 2):
        build_round(run, number, paths, pairs=pairs)
    baselines = ("majority", "question-only")
    scores, differences = [], []
    for benchmark in ("phantom-test", "validation"):
        for place, policy in enumerate((*policies, *baselines)):
            skill = 0.54 + 0.12 * place if policy in policies else 0.31
            build_predictions(run, policy, benchmark, paths, skill)
            for metric, shift, n in (("closed_accuracy", 0.2, 122), ("open_recall", 0.08, 341), ("open_exact_match", 0.0, 341)):
                value = min(skill + shift - (0.09 if benchmark == "validation" else 0.0), 0.97)
                scores.append(
                    Score(
                        policy=policy, benchmark=benchmark, metric=metric, value=value, low=value - 0.043,
                        high=min(value + 0.041, 1), n=n,
                    )
                )  # fmt: skip
                if policy in policies[1:]:
                    gain = value - (0.54 + shift - (0.09 if benchmark == "validation" else 0.0))
                    differences.append(
                        Difference(
                            policy=policy, against="sft", benchmark=benchmark, metric=metric, value=gain,
                            low=gain - 0.0523, high=gain + 0.0517, n=n,
                        )
                    )  # fmt: skip
    outcome = Outcome(
        name=options.name,
        policies=policies,
        baselines=baselines,
        best=policies[-1],
        sentences=tuple(
            f"Round {n}: open exact match on validation rose from {33 + 12 * n}.0 to {45 + 12 * n}.0 %; kept as best."
            for n in range(1, rounds + 1)
        )
        if pairs
        else ("Round 1 made no pair: every verdict was a tie. The run stopped.",),
        notes=(
            "The expert is the oracle: it reads the truth each phantom was drawn from and abstains where that does not decide.",
            "No benchmark image is among the training images.",
        ),
        scores=tuple(scores),
        differences=tuple(differences),
    )
    write_whole(run / "outcome.json", outcome.model_dump_json(indent=1))
    return Made(run, outcome)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    built = build(tmp_path_factory.mktemp("run"))
    write_report(built.run)
    return built


@pytest.fixture(scope="module")
def page(made: Made) -> str:
    return (made.run / "report.html").read_text()


def test_every_score_and_difference_of_the_outcome_is_on_the_page(made: Made, page: str) -> None:
    cells = " ".join(page.split())
    for score in made.outcome.scores:
        interval = f"{percent(score.low)} – {percent(score.high)}"
        assert f'<b>{percent(score.value)}</b> <span class="small">{interval}</span>' in cells
        assert f">n = {score.n}<" in cells
    for row in made.outcome.differences:
        assert f">{points(row.value)}</span> [{points(row.low)}, {points(row.high)}]" in cells
    assert cells.count("<td><b>") == len(made.outcome.scores)


def test_the_page_says_what_the_verdicts_bought(made: Made, page: str) -> None:
    spent = verdicts_spent(read_run_files(made.run), made.outcome.scores[0].benchmark)
    assert spent is not None
    judged = [read_manifest(made.run / f"round-{number}" / "judge").counts_in for number in (1, 2)]
    assert [row.verdicts for row in spent.rows][:3] == [0, judged[0], sum(judged)]
    section = page.split('<section id="spent">')[1].split("</section>")[0]
    for row in spent.rows:
        assert f"<td>{row.verdicts:,}</td>" in section
        for gain in row.gains:
            assert gain is None or f">{points(gain.value)}</span>" in section


def test_what_the_verdicts_bought_stands_in_the_order_of_the_other_tables(made: Made) -> None:
    spent = verdicts_spent(read_run_files(made.run), made.outcome.scores[0].benchmark)
    assert spent is not None
    assert spent.metrics == ("open_exact_match", "closed_accuracy", "open_recall")
    assert list(CHIEF) == [metric for metric in METRICS if metric in CHIEF]


def test_the_summary_gives_the_gain_of_the_best_policy_with_its_interval(page: str) -> None:
    text = page.replace("\u00a0", " ")
    assert "After 2 rounds of self-training the validation split chose round 2." in text
    wanted = (
        "open exact match rose from 54.0 to 78.0 %, a difference of +24.0 points "
        "(95 % interval of the paired difference +18.8 to +29.2, n = 341)."
    )
    assert wanted in text


def test_the_page_shows_notes_sentences_and_the_drops_by_cause(made: Made, page: str) -> None:
    for text in (*made.outcome.notes, *made.outcome.sentences, "repeated 4 · empty 1", "tie 5 · no verdict 2", "abstained 2"):
        assert text in page


@pytest.mark.parametrize("name", [*SCORED, "open_semantic", "verdict_share", "panel_agreement", "true_error_low", "wrong"])
def test_every_rate_of_a_stage_stands_in_percent(name: str) -> None:
    assert [measure(name, value) for value in (0.02381, 0.452, 0.0, 1.0)] == [
        f"{value}\u00a0%" for value in ("2.4", "45.2", "0.0", "100.0")
    ]


@pytest.mark.parametrize("name", ["mean_margin", "cost", "open_semantic_kappa_with_medical_match", "wrong_n", "true_error_n"])
def test_what_is_no_rate_does_not_stand_in_percent(name: str) -> None:
    assert [measure(name, value) for value in (0.02381, 1.0)] == ["0.02381", "1"]


def test_the_page_asks_for_nothing_from_outside(page: str) -> None:
    assert not re.search(r"https?://|//[a-z]+\.", page)
    sources = re.findall(r"""(?:src|href|srcset|poster|data|action)\s*=\s*["']([^"']*)""", page)
    assert sources
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert not re.search(r"url\(|@import|<script|<iframe|<link", page)


def test_a_script_in_an_answer_or_a_name_is_shown_as_text(tmp_path: Path) -> None:
    built = build(tmp_path / "run", images=1, rounds=1)
    page = write_report(built.run).read_text()
    assert "&lt;script&gt;alert(" in page
    assert "phantom &lt;demo&gt;" in page
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page


def test_a_notebook_shows_scores_and_pictures_and_escapes_what_was_said(made: Made, tmp_path: Path) -> None:
    shown = show_run(made.run, examples=2)
    html = shown._repr_html_()
    for score in made.outcome.scores:
        assert f"<td>{score.value:.1%} [{score.low:.1%}, {score.high:.1%}]</td>" in html
    assert (len(shown.asked), len(shown.tested)) == (2, 2)
    assert html.count("data:image/jpeg;base64,") == 4
    evil = show_run(build(tmp_path / "run", images=1, rounds=1).run)._repr_html_()
    assert "&lt;script&gt;alert(" in evil
    assert "<script" not in evil


def test_a_record_shows_its_fields_in_a_notebook() -> None:
    html = Score(policy=EVIL, benchmark="vqa-rad", metric="recall", value=0.5, low=0.4, high=0.6, n=3)._repr_html_()
    cell = '<td style="text-align: left">'
    assert f"{cell}n</td>{cell}3</td>" in html
    assert ">rule</td>" not in html  # It holds nothing.
    assert "<script" not in html
    assert "&lt;" in html


def test_what_a_record_holds_is_shown_in_words(made: Made) -> None:
    pair = read_records(made.run / "round-1" / "pair", "preferences", Preference)[0]
    html = pair._repr_html_()
    assert "role: user, content: " in html
    assert "Message(" not in html
    assert "('" not in html
    many = pair.model_copy(update={"images": ("a.png", "b.png"), "margin": 1 / 3})._repr_html_()
    assert "a.png<br>b.png" in many
    assert ">0.3333<" in many
    judged = read_records(made.run / "round-1" / "judge", "judgments", Judgment)
    assert ">1, 0" in next(one for one in judged if one.scores and one.scores[:2] == (1, 0))._repr_html_()


def test_a_script_in_a_chart_is_shown_as_text() -> None:
    line = Line(EVIL, ((1.0, 1.0), (2.0, 2.0)), 0.5)
    for chart in (interval_chart(EVIL, [Dot(EVIL, 0.5, 0.4, 0.6, 0.0)]), line_chart(EVIL, [line, line], share=False)):
        assert "<script" not in chart
        assert "<img" not in chart


def test_the_summary_file_has_exactly_the_promised_shape(made: Made) -> None:
    summary = json.loads((made.run / "summary.json").read_text())
    assert list(summary) == [
        "name", "seed", "best", "rows", "differences", "labels", "prompts", "overlaps", "sentences", "notes", "stages",
    ]  # fmt: skip
    assert (summary["name"], summary["seed"], summary["best"]) == ("phantom <demo>", 7, "round-2")
    assert [Score.model_validate(row) for row in summary["rows"]] == list(made.outcome.scores)
    assert list(summary["rows"][0]) == list(Score.model_fields)
    assert [Difference.model_validate(row) for row in summary["differences"]] == list(made.outcome.differences)
    assert list(summary["stages"])[:7] == [
        "data",
        "sft",
        *(f"round-1/{name}" for name in ("ask", "answer", "judge", "pair", "dpo")),
    ]
    assert summary["stages"]["round-1/ask"] | {"seconds": 0} == {
        "in": 29,
        "out": 24,
        "dropped": {"empty": 1, "repeated": 4},
        "measures": {"valid_share": 0.953},
        "seconds": 0,
        "device": "cpu",
    }


def test_the_same_files_give_the_same_bytes(made: Made, page: str) -> None:
    before = (made.run / "summary.json").read_bytes()
    assert write_report(made.run).read_text() == page
    assert (made.run / "summary.json").read_bytes() == before


def test_a_run_that_stopped_in_round_1_without_pairs_still_has_a_report(tmp_path: Path) -> None:
    built = build(tmp_path / "run", pairs=False, images=6)
    page = write_report(built.run).read_text()
    assert "1 round of self-training ran without a policy that beats sft" in page
    assert "Round 1 made no pair" in page
    assert "round-1/dpo" not in json.loads((built.run / "summary.json").read_text())["stages"]


@pytest.mark.parametrize("name", ["sft", "round-1/judge", "evaluate/sft/validation"])
def test_a_stage_without_a_manifest_is_refused(tmp_path: Path, name: str) -> None:
    built = build(tmp_path / "run", images=2)
    (built.run / name / "manifest.json").unlink()
    with pytest.raises(StllavaError, match=f"{name} has no manifest.json"):
        write_report(built.run)
    assert not (built.run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "expected"), [("plan.json", "the folder of a run or stage"), ("outcome.json", "the directory of a finished run")]
)
def test_a_directory_that_is_no_finished_run_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    built = build(tmp_path / "run", images=1, rounds=1)
    (built.run / name).unlink()
    with pytest.raises(StllavaError, match=f"{name}; expected {expected}"):
        write_report(built.run)


def test_a_broken_outcome_is_refused_by_name(tmp_path: Path) -> None:
    built = build(tmp_path / "run", images=1, rounds=1)
    (built.run / "outcome.json").write_text('{"name": 1')
    with pytest.raises(StllavaError, match=r"outcome\.json is damaged: .*expected the file as"):
        write_report(built.run)


def test_a_lost_image_costs_its_picture_and_not_the_report(tmp_path: Path) -> None:
    built = build(tmp_path / "run", images=2, rounds=1)
    for path in (built.run / "data" / "images").rglob("*.png"):
        path.write_bytes(b"")
    assert "image not readable" in write_report(built.run).read_text()


def test_a_thumbnail_is_small_and_keeps_no_metadata_and_stays_in_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    exif = Image.Exif()
    exif[0x010E] = "PATIENT NAME"
    Image.new("RGB", (900, 300), (9, 9, 9)).save(root / "a.jpg", exif=exif, comment=b"PATIENT NAME")
    Image.new("L", (9, 9)).save(tmp_path / "outside.png")
    data = base64.b64decode(thumbnail(root, "a.jpg").split(",")[1])
    assert b"PATIENT" in (root / "a.jpg").read_bytes()
    assert b"PATIENT" not in data
    assert Image.open(io.BytesIO(data)).size == (192, 64)
    assert thumbnail(root, "../outside.png") == ""
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(root / "deep.png")
    assert thumbnail(root, "deep.png").startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("kind", "completion", "target", "right"),
    [
        ("closed", "Yes, there is a fracture.", "yes", True),
        ("closed", "There is no fracture.", "yes", False),
        ("open", "The left lung.", "left lung", True),
        ("open", "right lung", "left lung", False),
    ],
)
def test_the_gallery_calls_an_answer_right_where_the_table_counts_it(
    kind: Literal["open", "closed"], completion: str, target: str, right: bool
) -> None:
    row = Prediction(
        id="1", sample_id="1", image="a.png", question="?", targets=(target,), kind=kind, completion=completion, policy="p"
    )
    counted = values([row], "closed_accuracy" if kind == "closed" else "open_exact_match")
    assert (is_right(row), counted) == (right, [float(right)])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-9.13, -4.2), (3.0, 3.0), (0.0, 0.0), (1e-5, 3e-5), (-2.0, 7000.0)])
def test_ticks_span_the_values_with_few_round_numbers(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 7


def test_labels_at_line_ends_never_overlap() -> None:
    places = spread([50.0, 50.0, 51.0, 159.0], gap=14, low=10, high=160)
    assert all(later - earlier >= 14 for earlier, later in zip(sorted(places), sorted(places)[1:], strict=False))
    assert max(places) <= 160


def test_a_curve_with_one_point_or_with_gaps_is_drawn() -> None:
    assert "<circle" in line_chart("loss", [Line("a", ((1.0, 2.0),), 0.0)], share=False)
    assert "nan" not in line_chart("loss", [Line("a", ((1.0, math.nan), (2.0, 1.0), (3.0, 1.5)), 0.0)], share=False)
    assert "nothing recorded" in line_chart("loss", [Line("a", (), 0.0)], share=False)


def test_the_page_stays_small(page: str) -> None:
    assert len(page.encode()) < 1_500_000


def label(run: Path, name: str, values: list[str]) -> None:
    """Give the samples of the first benchmark a label, its values in turn, in every policy's predictions."""
    for folder in sorted((run / "evaluate").glob("*/phantom-test")):
        path = folder / "predictions.jsonl"
        rows = [Prediction.model_validate_json(line) for line in path.read_text().splitlines()]
        named = [
            row.model_copy(update={"labels": row.labels | {name: values[place % len(values)]}})
            for place, row in enumerate(rows)
        ]
        remove_folder(folder)
        made = stage("evaluate", folder)
        made.write_records("predictions", named)
        made.finish(counts_in=len(named), counts_out=len(named))


def test_scores_by_label_are_on_the_page_and_in_the_summary_from_the_same_answers(tmp_path: Path) -> None:
    built = build(tmp_path / "run", images=60)
    label(built.run, "source", ["clinic", "clinic", "<b>archive</b>"])
    label(built.run, "hospital ward", ["one"])
    page = " ".join(write_report(built.run).read_text().split())
    [found] = json.loads((built.run / "summary.json").read_text())["labels"]
    assert (found["benchmark"], found["label"], found["left_out"]) == ("phantom-test", "source", 0)
    assert list(found["values"]) == ["clinic", "<b>archive</b>"]
    for value in found["values"].values():
        assert {row["policy"] for row in value["rows"]} == {"sft", "round-1", "round-2"}
        assert {(row["policy"], row["against"]) for row in value["differences"]} == {("round-2", "sft")}
        for row in map(Score.model_validate, value["rows"]):
            assert f'{percent(row.value)}<span class="small">{percent(row.low)} – {percent(row.high)}</span>' in page
        for gain in map(Difference.model_validate, value["differences"]):
            assert f'{points(gain.value)}</span><span class="small">{points(gain.low)} to {points(gain.high)}</span>' in page
    assert "<summary>phantom-test: source</summary>" in page
    assert "&lt;b&gt;archive&lt;/b&gt;" in page
    assert "hospital ward" not in page


def test_a_report_of_records_read_one_by_one_is_that_of_records_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(tmp_path / "run", images=30)
    label(built.run, "source", ["clinic", "clinic", "archive"])
    streamed = write_report(built.run).read_bytes(), (built.run / "summary.json").read_bytes()

    def held(folders: list[Path], name: str, record_type: type[R]) -> "Held[R]":
        return Held(read_records(folders[0], name, record_type))

    monkeypatch.setattr(run_files, "index_records", held)
    assert streamed == (write_report(built.run).read_bytes(), (built.run / "summary.json").read_bytes())


class Held(list[R]):
    """Records in memory, of which some are taken as of those on disk."""

    def rearranged(self, order: Iterable[int]) -> "Held[R]":
        return Held(self[number] for number in order)


def test_small_groups_are_marked_and_rare_values_counted(tmp_path: Path) -> None:
    built = build(tmp_path / "run", images=60)
    label(built.run, "patient", [f"patient {place // 2}" for place in range(60)] + ["other"])
    page = write_report(built.run).read_text()
    assert '<span class="small">small</span>' in page
    assert "are left out" not in page
    label(built.run, "patient", [f"patient {place}" for place in range(60)])
    assert "The 20 rarest values, of 20 questions together, are left out." in write_report(built.run).read_text()


def test_samples_without_labels_have_no_section_of_labels(page: str) -> None:
    assert 'id="labels"' not in page


def test_the_gallery_shows_the_experts_correction_as_what_was_chosen(made: Made) -> None:
    files = read_run_files(made.run)
    part = files.rounds[0]
    key = part.preferences[0].lineage.judgment_id
    judgments = tuple(row.model_copy(update={"correction": "a hernia"}) if row.id == key else row for row in part.judgments)
    chosen = part.preferences[0].model_copy(update={"chosen": "a hernia"})
    shown = dataclasses.replace(part, judgments=judgments, preferences=(chosen,))
    cards = self_asked(dataclasses.replace(files, rounds=(shown,)))
    [card] = [card for card in cards if "became a pair" in card.head]
    assert (card.said[0].label, card.said[0].text, card.said[0].mark) == ("expert", "a hernia", "chosen")


def test_the_gallery_says_where_other_wordings_overruled_a_verdict(made: Made) -> None:
    files = read_run_files(made.run)
    part = files.rounds[0]
    pair = part.preferences[0]
    for overruled in (False, True):
        shown = pair.model_copy(update={"lineage": pair.lineage.model_copy(update={"overruled": overruled})})
        rounds = (dataclasses.replace(part, preferences=(shown,)),)
        [card] = [card for card in self_asked(dataclasses.replace(files, rounds=rounds)) if "became a pair" in card.head]
        assert card.verdict.startswith("Overruled") == overruled
