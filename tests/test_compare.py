"""The comparison of runs, on run directories made by hand."""

import csv
import io
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stllava.config import Options
from stllava.errors import StllavaError
from stllava.metrics.score import METRICS, compare, measured, score, values
from stllava.metrics.seeds import combine_seeds
from stllava.records import Outcome, Prediction, QuestionKind, Score, content_id
from stllava.report.compare import compare_runs, make_comparison, render
from stllava.report.comparison_tables import ComparisonRow
from stllava.report.published_results import MARK, read_published
from stllava.report.wording import CHIEF
from stllava.store import Stage, write_whole

EVIL = "<script>x</script> a|b & 100% of_it \\input{x} [y](z)"
ENDINGS = ("html", "md", "csv", "tex")
IMAGES = 12


class Recipe(Options):
    """What a made-up run was started with."""

    name: str
    seed: int
    rounds: int = 1


def answers(policy: str, skill: int, *, seed: int = 0, images: int = IMAGES, own: str = "") -> list[Prediction]:
    """Two questions an image; a policy of skill k answers k of 8 right, elsewhere with every seed."""
    rows = []
    for place in range(2 * images):
        kind: QuestionKind = "closed" if place % 2 else "open"
        target, wrong = ("yes", "no") if kind == "closed" else ("left lung", "right lung")
        right = (5 * place + 3 * seed) % 8 < skill
        rows.append(
            Prediction(
                id=content_id(policy, seed, place),
                sample_id=f"{own}{place}",
                image=f"{place // 2}.png",
                question=f"{own}Question {place}?",
                targets=(target,),
                kind=kind,
                completion=target if right else "it is hard to say" if place % 7 == 3 else wrong,
                policy=policy,
            )
        )
    return rows


def evaluation(to: Path, rows: Sequence[Prediction], *, policy: str, benchmark: str, rule: str | None = None) -> Score:
    """The folder of one evaluation, with one stored score; `rule` is the one it names instead of today's."""
    made = Stage("evaluate", to, Recipe(name="evaluate", seed=0), inputs={"name": policy}, existing="error")
    shares = values(measured(rows, "open_recall"), "open_recall")
    kept = Score(
        policy=policy, benchmark=benchmark, metric="open_recall", value=sum(shares) / len(shares), low=0, high=1, n=len(shares),
        rule=METRICS["open_recall"].rule if rule is None else rule,
    )  # fmt: skip
    made.write_records("predictions", rows)
    made.write_records("scores", [kept])
    made.finish(counts_in=len(rows), counts_out=len(rows), device="a & b")
    return kept


def run(
    to: Path, *, seed: int = 0, name: str = "plan", best: str = "round-1", benchmark: str = "vqa-rad", own: str = "",
    rounds: int = 1,
) -> Path:  # fmt: skip
    """A finished run with sft, two rounds and the baselines."""
    Stage("run", to, Recipe(name=name, seed=seed, rounds=rounds), inputs={}, existing="error")
    policies, baselines = ("sft", "round-1", "round-2"), ("majority", "blind-sft", "blind-round-1", "blind-round-2")
    scores = []
    for skill, policy in enumerate((*policies, *baselines), 3):
        rows = answers(policy, skill if policy in policies else 2, seed=seed, own=own)
        scores.append(evaluation(to / "evaluate" / policy / benchmark, rows, policy=policy, benchmark=benchmark))
    outcome = Outcome(
        name=name, policies=policies, baselines=baselines, best=best, sentences=(), notes=(), scores=tuple(scores),
        differences=(),
    )  # fmt: skip
    write_whole(to / "outcome.json", outcome.model_dump_json())
    return to


@pytest.fixture(scope="module", autouse=True)
def nothing_reaches_the_disk() -> Iterator[None]:
    """Hundreds of small files need not outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("one") / "a")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs that differ in the seed, and in which policy was best."""
    folder = tmp_path_factory.mktemp("seeds")
    return [run(folder / f"s{seed}", seed=seed, best=best) for seed, best in enumerate(("round-1", "round-2", "sft"))]


@pytest.fixture(scope="module")
def written(one: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The four files about one run, by their endings."""
    to = tmp_path_factory.mktemp("written")
    compare_runs([one], to=to)
    return texts(to)


def texts(folder: Path) -> dict[str, str]:
    return {ending: (folder / f"compare.{ending}").read_text() for ending in ENDINGS}


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def listed(rows: Sequence[ComparisonRow]) -> list[str]:
    return [f"{row.where}/{row.policy}" for row in rows]


def differences(ours: Sequence[Prediction], others: Sequence[Prediction], metric: str) -> list[float]:
    pair = values(measured(ours, metric), metric), values(measured(others, metric), metric)
    return [a - b for a, b in zip(*pair, strict=True)]


def test_one_run_shows_the_scores_and_differences_of_its_answers(one: Path) -> None:
    made = make_comparison([one])
    ours, published = made.tables
    assert listed(ours.rows) == ["plan/sft", "plan/round-1", "plan/majority", "plan/blind-sft", "plan/blind-round-1"]
    assert (*ours.metrics, *published.metrics) == tuple(METRICS)
    sft, best = answers("sft", 3), answers("round-1", 4)
    wanted = compare(best, sft, policy="plan/round-1", against="plan/sft", benchmark="vqa-rad")
    assert list(ours.rows[1].scores.values()) == score(best, policy="round-1", benchmark="vqa-rad")
    assert list(ours.rows[1].gains.values()) == wanted
    assert (ours.rows[0].remark, ours.rows[0].gains) == ("the reference", {})
    assert ours.rows[0].scores["closed_accuracy"].abstained > 0


def test_all_policies_are_shown_when_asked_for(one: Path) -> None:
    rows = make_comparison([one], policies="all").tables[0].rows
    assert [row.policy for row in rows[:3]] == ["sft", "round-1", "round-2"]
    assert len(rows) == 7


def test_runs_that_differ_in_the_seed_alone_are_one_row(seeds: list[Path]) -> None:
    made = make_comparison(seeds)
    assert [row.policy for row in made.tables[0].rows] == ["sft", "best", "majority", "blind-sft", "blind-best"]
    assert "plan: the best policy of each seed is seed 0 round\u00a01, seed 1 round\u00a02, seed 2 sft." in made.notes
    chosen = [answers("x", skill, seed=seed) for seed, skill in enumerate((4, 5, 3))]
    sft = [answers("sft", 3, seed=seed) for seed in range(3)]
    for table in made.tables:
        first, best, *_ = table.rows
        assert (first.remark, first.gains) == ("the reference", {})
        assert best.where == "plan, 3 seeds"
        for metric in table.metrics:
            scored = [measured(part, metric) for part in chosen]
            images = [[row.image for row in part] for part in scored]
            found, gain = best.scores[metric], best.gains[metric]
            assert (found.value, found.low, found.high) == combine_seeds([values(part, metric) for part in scored], images)
            assert (found.n, gain.n, gain.p) == (IMAGES, IMAGES, None)
            paired = [differences(a, b, metric) for a, b in zip(chosen, sft, strict=True)]
            assert (gain.value, gain.low, gain.high) == combine_seeds(paired, images, differences=True)


def test_seeds_with_images_of_their_own_count_every_image(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"s{seed}", seed=seed, own=f"{seed} ") for seed in range(2)]
    found = make_comparison(folders).tables[0].rows[1].scores["open_recall"]
    parts = [measured(answers("x", 4, seed=seed), "open_recall") for seed in range(2)]
    images = [[f"{seed} {row.image}" for row in part] for seed, part in enumerate(parts)]
    assert (found.value, found.low, found.high) == combine_seeds([values(part, "open_recall") for part in parts], images)
    assert found.n == 2 * IMAGES


def test_runs_with_other_options_or_the_same_seed_stay_apart(one: Path, tmp_path: Path) -> None:
    shutil.copytree(one, tmp_path / "b")
    rows = make_comparison([one, tmp_path / "b", run(tmp_path / "c", seed=1, rounds=2)]).tables[0].rows
    assert [(row.run, row.seeds) for row in rows if row.policy == "sft"] == [("a", (0,)), ("b", (0,)), ("c", (1,))]


def test_single_seeds_stand_in_the_csv_beside_the_combined_row(seeds: list[Path], tmp_path: Path) -> None:
    compare_runs(seeds[:2], to=tmp_path)
    rows = [row for row in read(texts(tmp_path)["csv"]) if row["metric"] == "open_f1"]
    found = {(row["run"], row["policy"]): row for row in rows}
    assert len(found) == len(rows)
    assert [found[key]["seeds"] for key in (("plan", "best"), ("s0", "round-1"), ("s1", "round-2"))] == ["0 1", "0", "1"]
    alone = found["s1", "round-2"]
    [wanted] = [one for one in score(answers("x", 5, seed=1), policy="", benchmark="") if one.metric == "open_f1"]
    for name in ("value", "low", "high", "n"):
        assert float(alone[name]) == pytest.approx(getattr(wanted, name), rel=1e-5)
    assert alone["against"] == "plan/sft"
    assert {row["difference"] for row in rows if row["policy"] == "sft"} == {""}


def test_an_evaluation_alone_is_paired_with_a_run_on_the_same_samples(one: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "peer", answers("peer", 6), policy="peer", benchmark="vqa-rad")
    row = make_comparison([one, tmp_path / "peer"]).tables[0].rows[-1]
    assert (row.run, row.policy, row.seeds, row.remark) == ("peer", "peer", (), "")
    wanted = compare(answers("peer", 6), answers("sft", 3), policy="peer/peer", against="plan/sft", benchmark="vqa-rad")
    assert list(row.gains.values()) == wanted


def test_seeds_without_a_partner_are_shown_and_not_paired(seeds: list[Path], tmp_path: Path) -> None:
    evaluation(tmp_path / "peer", answers("peer", 6), policy="peer", benchmark="vqa-rad")
    row = make_comparison([*seeds[:2], tmp_path / "peer"]).tables[0].rows[-1]
    assert (row.policy, row.gains, row.remark) == ("peer", {}, "no seed in common with the reference: no paired difference")


def test_answers_to_other_samples_are_shown_and_not_paired(one: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "other", answers("peer", 6, own="other "), policy="peer", benchmark="vqa-rad")
    evaluation(tmp_path / "elsewhere", answers("peer", 6), policy="peer", benchmark="phantom")
    folders = [one, tmp_path / "other", tmp_path / "elsewhere"]
    remarks = {row.run: row.remark for table in make_comparison(folders).tables for row in table.rows if row.policy == "peer"}
    assert remarks == {
        "other": "answered other samples than the reference: no paired difference",
        "elsewhere": "the reference did not answer this benchmark",
    }
    compare_runs(folders, to=tmp_path / "to")
    for text in texts(tmp_path / "to").values():
        assert remarks["other"] in text
        assert remarks["elsewhere"] in text


def test_samples_that_one_policy_could_not_answer_are_left_out_of_the_difference(one: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "peer", answers("peer", 6)[2:], policy="peer", benchmark="vqa-rad")
    row = make_comparison([tmp_path / "peer", one]).tables[0].rows[1]
    assert (row.policy, row.scores["open_recall"].n, row.gains["open_recall"].n) == ("sft", IMAGES, IMAGES - 1)


def test_the_validation_split_comes_last_and_the_page_says_what_it_chose(one: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "peer", answers("peer", 6), policy="peer", benchmark="validation")
    made = make_comparison([tmp_path / "peer", one])
    assert [table.benchmark for table in made.tables] == ["vqa-rad", "vqa-rad", "validation", "validation"]
    assert "It chose the best policies" in render(made)


@pytest.mark.parametrize(
    ("against", "policy"), [("round-2", "round-2"), ("plan/round-2", "round-2"), ("best", "round-1"), ("plan/best", "round-1")]
)
def test_another_reference_can_be_named_and_is_then_shown(one: Path, against: str, policy: str) -> None:
    made = make_comparison([one], against=against)
    assert made.reference == f"plan/{policy}"
    assert made.tables[0].rows[0].gains["open_f1"].against == f"plan/{policy}"
    assert [row.policy for row in made.tables[0].rows if row.remark == "the reference"] == [policy]


def test_a_reference_that_is_no_row_is_refused_with_those_that_are(one: Path) -> None:
    with pytest.raises(StllavaError, match="no row 'nobody' to compare with; expected one of plan/sft, plan/round-1"):
        make_comparison([one], against="nobody")


def test_a_folder_that_is_neither_run_nor_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StllavaError, match=r"is neither a finished run nor an evaluation; expected a folder with outcome\.json"
    ):
        compare_runs([tmp_path], to=tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_run_named_twice_or_none_is_refused(one: Path) -> None:
    for folders in ([one, one / ".." / "a"], []):
        with pytest.raises(StllavaError, match="no run, or one run twice"):
            make_comparison(folders)


def test_a_broken_or_unfinished_run_is_refused_by_name(one: Path, tmp_path: Path) -> None:
    shutil.copytree(one, tmp_path / "a")
    (tmp_path / "a" / "evaluate" / "sft" / "vqa-rad" / "manifest.json").unlink()
    with pytest.raises(StllavaError, match=r"evaluate/sft/vqa-rad has no manifest\.json"):
        make_comparison([tmp_path / "a"])
    (tmp_path / "a" / "outcome.json").write_text('{"name": 1')
    with pytest.raises(StllavaError, match=r"outcome\.json is damaged: .*; expected the file as"):
        make_comparison([tmp_path / "a"])


@pytest.mark.parametrize("benchmark", ["vqa-rad", "slake-test", "path-vqa"])
def test_published_rows_stand_apart_and_are_marked_in_every_format(tmp_path: Path, benchmark: str) -> None:
    evaluation(tmp_path / "peer", answers("peer", 6), policy="peer", benchmark=benchmark)
    compare_runs([tmp_path / "peer"], to=tmp_path / "to")
    made = texts(tmp_path / "to")
    for text in made.values():
        assert MARK in text
        assert "arXiv 2406.19973" in text
    rows = [row for row in read(made["csv"]) if row["source"] == "published"]
    assert {row["metric"] for row in rows} == {"llava_med_open_recall", "llava_med_open_f1", "llava_med_closed"}
    assert {(row["benchmark"], row["low"], row["high"], row["difference"]) for row in rows} == {(benchmark, "", "", "")}
    assert all(row["note"].startswith(MARK) for row in rows)
    lines = [line for line in made["md"].splitlines() if "STLLaVA-Med-7B" in line]
    assert len(lines) == 1
    assert MARK in lines[0]


@pytest.mark.parametrize("benchmark", ["phantom", "vqa-rad-train", "my-slake"])
def test_a_benchmark_of_another_name_has_no_published_rows(benchmark: str) -> None:
    assert read_published(benchmark) == []


def test_the_printed_numbers_are_those_of_the_paper() -> None:
    ours, base = read_published("vqa-rad")
    found = {metric: (round(100 * cell.value, 2), cell.n) for metric, cell in ours.cells.items()}
    assert found == {"llava_med_open_recall": (37.12, 179), "llava_med_open_f1": (10.83, 179), "llava_med_closed": (60.35, 272)}
    assert (ours.model, base.model) == ("STLLaVA-Med-7B", "LLaVA-Med")
    assert "llava_med_open_f1" not in base.cells


def test_a_set_of_another_size_than_the_published_one_is_said_to_be_another_test(one: Path) -> None:
    told = [note for note in make_comparison([one]).notes if note.endswith("rows with another n are not of the same test.")]
    assert [re.findall(r"\d+ \w+", note) for note in told] == [["179 open"], ["272 closed"]]


@pytest.mark.parametrize("rule", ["", "robust-1"])
def test_stored_scores_of_older_rules_are_made_again_and_named(tmp_path: Path, rule: str) -> None:
    evaluation(tmp_path / "a", answers("peer", 6), policy="peer", benchmark="vqa-rad", rule=rule)
    made = make_comparison([tmp_path / "a"])
    assert made.notes[2] == "The runs' own reports may show other numbers, made by older rules: Open recall."
    assert list(made.tables[0].rows[0].scores.values()) == score(answers("peer", 6), policy="peer", benchmark="vqa-rad")


def test_what_answers_alone_do_not_give_is_shown_as_it_was_stored(tmp_path: Path) -> None:
    rows = answers("peer", 6)
    kept = Score(
        policy="peer", benchmark="slake", metric="open_semantic", value=0.5, low=0.4, high=0.6, n=12, rule="expert-x"
    )  # fmt: skip
    made = Stage("evaluate", tmp_path / "a", Recipe(name="x", seed=0), inputs={}, existing="error")
    made.write_records("predictions", rows)
    made.write_records("scores", [kept])
    made.finish(counts_in=len(rows), counts_out=len(rows))
    comparison = make_comparison([tmp_path / "a"])
    assert [table.rows[0].scores["open_semantic"] for table in comparison.tables if table.rule == "expert-x"] == [kept]
    assert any(note.endswith("not of several seeds: Open semantic.") for note in comparison.notes)


def test_a_hostile_name_is_text_in_every_format(tmp_path: Path) -> None:
    evaluation(tmp_path / "peer", answers("=1+1", 6), policy="=1+1", benchmark=EVIL)
    compare_runs([run(tmp_path / "a", name=EVIL, benchmark="b"), tmp_path / "peer"], to=tmp_path / "to")
    made = texts(tmp_path / "to")
    assert "<script" not in made["html"] + made["md"]
    assert "&lt;script&gt;x&lt;/script&gt; a|b &amp; 100% of_it" in made["html"]
    assert "&lt;script&gt;x&lt;/script&gt; a\\|b &amp; 100% of\\_it \\\\input{x} \\[y\\](z)" in made["md"]
    for block in made["md"].split("\n\n"):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines() if line.startswith("|")}) <= 1
    assert "\\input" not in made["tex"]
    assert "a|b \\& 100\\% of\\_it \\textbackslash{}input\\{x\\}" in made["tex"]
    assert "device a \\& b" in made["tex"]
    rows = read(made["csv"])
    assert {row["run"] for row in rows if row["policy"] == "sft"} == {EVIL}
    assert {row["policy"] for row in rows if row["run"] == "peer"} == {"'=1+1"}


def test_the_page_asks_for_nothing_from_outside(written: dict[str, str]) -> None:
    page = written["html"]
    assert not re.search(r"https?://|//[a-z]+\.|url\(|@import|<script|<iframe|<link|<img|src=", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == len(CHIEF)


def test_the_same_files_give_the_same_bytes(one: Path, written: dict[str, str], tmp_path: Path) -> None:
    compare_runs([one], to=tmp_path)
    assert texts(tmp_path) == written


def test_every_measured_number_stands_in_markdown_latex_and_page(one: Path, written: dict[str, str]) -> None:
    for table in make_comparison([one]).tables:
        for row in table.rows:
            for found in row.scores.values():
                shown = f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}], n = {found.n}"
                assert shown.replace("[", "\\[").replace("]", "\\]") in written["md"]
                assert shown in written["tex"]
                assert f"<b>{100 * found.value:.1f}</b>" in written["html"]


def test_every_line_of_a_latex_table_has_as_many_cells(written: dict[str, str]) -> None:
    blocks = re.findall(r"\\toprule\n(.*?)\n\\bottomrule\n\\end{tabular}", written["tex"], flags=re.S)
    assert len(blocks) == written["tex"].count("\\begin{tabular}") == 2
    for block in blocks:
        lines = [line for line in block.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1
