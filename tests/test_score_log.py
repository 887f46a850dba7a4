"""Answers that were given elsewhere are scored by our rules; a model is evaluated without a run."""

import importlib
import json
from pathlib import Path

import pytest
import yaml

from stllava.cli import main
from stllava.data.exchange.sample_logs import read_sample_log
from stllava.errors import StllavaError
from stllava.metrics.score import measured, values
from stllava.records import Prediction, Sample, Score
from stllava.stages.lmms_eval_tasks import write_task
from stllava.stages.score_log import score_log
from stllava.store import read_records, to_jsonl, write_whole

HARNESS = [
    # As lmms-eval 0.5's --log_samples writes a task that generates: the question in doc, images left out of it.
    {
        "doc_id": 0,
        "doc": {"question": "is there a fracture?", "answer": "yes"},
        "target": "yes",
        "arguments": {"0": "is there a fracture?\nAnswer in a word.", "1": "{'max_new_tokens': 16}"},
        "resps": [["Yes, there is."]],
        "filtered_resps": ["Yes, there is."],
        "doc_hash": "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
        "exact_match": 0.0,
    },
    # As its releases of 2025 do: the prompt as input, filtered_resps not in a list.
    {
        "doc_id": 1,
        "doc": {"answer": "left lung", "image_id": "synpic2.jpg"},
        "target": "left lung",
        "input": "which organ?",
        "resps": [["the left lung"]],
        "filtered_resps": "the left lung",
        "exact_match": 0.0,
    },
]
LATER = {
    # As lmms-eval 0.7.3 wrote it here: no doc, targets as Python writes a list, images under input_media.
    "doc_id": 0,
    "target": "['left lung', 'lung']",
    "resps": " the lung",
    "filtered_resps": "the lung",
    "token_counts": [{"output_tokens": 2}],
    "doc_hash": "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
    "input_media": ["images/synpic42202.jpg"],
    "exact_match": 0.0,
    "input": "which organ?",
}
VLMEVALKIT = """index\tquestion\tA\tB\tanswer\tcategory\tprediction\timage_path
7\twhich plane?\taxial\tcoronal\tA\tplane\tA. axial\tone.png
8\twhich plane?\taxial\tcoronal\tB\tplane\tit is axial\ttwo.png
"""


def by_metric(folder: Path) -> dict[str, Score]:
    return {one.metric: one for one in read_records(folder, "scores", Score)}


def test_a_log_of_lmms_eval_is_scored_by_our_rules(tmp_path: Path) -> None:
    path = tmp_path / "samples_vqa_rad.jsonl"
    write_whole(path, "".join(json.dumps(row) + "\n" for row in HARNESS))
    done = score_log(path, to=tmp_path / "scores", name="theirs", benchmark="vqa-rad")
    found = by_metric(tmp_path / "scores")
    assert (found["closed_accuracy"].value, found["closed_accuracy"].n) == (1.0, 1)
    assert (found["open_recall"].value, found["open_recall"].benchmark, found["open_recall"].policy) == (
        1.0,
        "vqa-rad",
        "theirs",
    )
    assert any("1 rows name no image" in note for note in done.notes)
    images = [one.image for one in read_records(tmp_path / "scores", "predictions", Prediction)]
    assert images[1] == "synpic2.jpg"


def test_a_log_of_lmms_eval_without_the_question_itself_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "samples_theirs.jsonl"
    write_whole(path, json.dumps(LATER) + "\n")
    (row,) = read_sample_log(path, policy="theirs").predictions
    assert (row.targets, row.image, row.question) == (("left lung", "lung"), "images/synpic42202.jpg", "which organ?")


def test_a_task_for_lmms_eval_asks_and_scores_as_evaluate_does_and_its_log_is_read_back(tmp_path: Path, phantoms: Path) -> None:
    rows = read_records(phantoms, "phantom", Sample)
    task = write_task("vqa-rad", rows, root=phantoms / "images", to=tmp_path, prompt="Q: {question}")
    docs = [json.loads(line) for line in (tmp_path / f"{task}.jsonl").read_text().splitlines()]
    written = yaml.load(
        (tmp_path / f"{task}.yaml").read_text(),
        Loader=type(
            "Loader", (yaml.SafeLoader,), {"yaml_constructors": {**yaml.SafeLoader.yaml_constructors, "!function": found}}
        ),
    )
    assert written["task"] == task == "stllava_vqa_rad"
    told = written["lmms_eval_specific_kwargs"]["default"]
    assert written["doc_to_text"](docs[0], told) == f"Q: {rows[0].question}"
    assert written["doc_to_visual"](docs[0], told)[0].mode == "RGB"
    log = []
    for number, (row, doc) in enumerate(zip(rows, docs, strict=True)):
        said = row.targets[0] if number % 2 else "no idea"
        results = written["process_results"](doc, [said])
        answer = Prediction.of(row, said, policy="x")
        named = [one["metric"] for one in written["metric_list"] if measured([answer], one["metric"])]
        assert results.keys() == {*named, "sample"}
        assert all(results[metric] == values([answer], metric)[0] for metric in named)
        log.append({"doc_id": number, "target": str(list(row.targets)), "resps": said, "filtered_resps": said, **results})
    path = tmp_path / "samples_task.jsonl"
    write_whole(path, "".join(json.dumps(row) + "\n" for row in log))
    read = read_sample_log(path, policy="x").predictions
    assert [(row.sample_id, row.kind, row.image, row.targets) for row in read] == [
        (row.id, row.kind, row.image, row.targets) for row in rows
    ]


def found(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> object:
    """What lmms-eval makes of its tag for functions."""
    module, _, name = loader.construct_scalar(node).rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_a_table_of_vlmevalkit_is_scored_by_its_choices(tmp_path: Path) -> None:
    path = tmp_path / "model_MyBench.tsv"
    path.write_text(VLMEVALKIT, encoding="utf-8")
    rows = read_sample_log(path, policy="theirs").predictions
    assert [(row.kind, row.choices, row.targets) for row in rows] == [
        ("closed", ("axial", "coronal"), ("axial",)),
        ("closed", ("axial", "coronal"), ("coronal",)),
    ]
    assert rows[0].sample_id == "7"
    score_log(path, to=tmp_path / "scores")
    assert by_metric(tmp_path / "scores")["closed_accuracy"].value == 0.5


def test_a_csv_is_scored_and_compared_with_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "image,question,answer,prediction\n"
    (tmp_path / "a.csv").write_text(f"{head}x.png,is it ct?,yes,yes\ny.png,which organ?,lung,\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text(f"{head}x.png,is it ct?,yes,no\ny.png,which organ?,lung,lung\n", encoding="utf-8")
    for name in ("a", "b"):
        main(["score", str(tmp_path / f"{name}.csv"), "--to", str(tmp_path / name), "--name", name, "--benchmark", "mine"])
    said = capsys.readouterr().out
    assert "closed_accuracy" in said
    assert "robust-" in said
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--to", str(tmp_path / "compared")])
    assert "open_exact_match" in (tmp_path / "compared" / "compare.csv").read_text(encoding="utf-8")


def test_answers_of_our_own_evaluation_score_as_they_did(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,question,answer,prediction\nx.png,is it ct?,yes,yes\n", encoding="utf-8")
    score_log(tmp_path / "a.csv", to=tmp_path / "first", benchmark="b")
    score_log(tmp_path / "first" / "predictions.jsonl", to=tmp_path / "second", benchmark="b")
    assert (tmp_path / "first" / "scores.jsonl").read_bytes() == (tmp_path / "second" / "scores.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "q?", "answer": "a"}, "no answer of a model"),
        ({"question": "q?", "prediction": "a"}, "no reference"),
        ({"answer": "a", "prediction": "a"}, "no question"),
        (
            {
                "doc_id": 0,
                "doc": {"question": "q?"},
                "target": "a",
                "resps": [[[-1.2, True]]],
                "filtered_resps": [[-1.2, True]],
            },
            "no text",
        ),
    ],
    ids=["no answer", "no reference", "no question", "log-likelihoods"],
)
def test_a_row_that_cannot_be_scored_is_refused_by_what_it_lacks(row: dict[str, object], told: str, tmp_path: Path) -> None:
    write_whole(tmp_path / "log.jsonl", json.dumps(row) + "\n")
    with pytest.raises(StllavaError, match=told):
        score_log(tmp_path / "log.jsonl", to=tmp_path / "scores")


def test_a_model_is_evaluated_on_published_benchmarks_without_a_run(
    tiny_model: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((phantoms / "images").rglob("*.png"))
    folder = tmp_path / "Slake1.0"
    (folder / "imgs" / "xmlab1").mkdir(parents=True)
    (folder / "imgs" / "xmlab1" / "source.jpg").write_bytes(image.read_bytes())
    row = {"img_name": "xmlab1/source.jpg", "q_lang": "en", "img_id": 1}
    questions = [("is it ct?", "Yes", "CLOSED"), ("which organ?", "Lung", "OPEN")]
    rows = [{**row, "qid": n, "question": q, "answer": a, "answer_type": kind} for n, (q, a, kind) in enumerate(questions)]
    write_whole(folder / "test.json", json.dumps(rows))
    words = ["evaluate", "--policy", str(tiny_model), "--to", str(tmp_path / "scores"), "--sampling.max-new-tokens", "4"]
    with pytest.raises(SystemExit):
        main([*words, "--benchmarks", f"slake={folder}"])
    assert "is not the published one" in capsys.readouterr().err
    main([*words, "--benchmarks", f"slake={folder}", "--allow-changed"])
    assert "closed_accuracy" in capsys.readouterr().out
    assert (tmp_path / "scores" / "slake" / "scores.jsonl").is_file()
    with pytest.raises(SystemExit):
        main([*words, "--benchmarks", "pmc-vqa"])
    assert "expected pmc-vqa=FOLDER" in capsys.readouterr().err


def test_evaluate_rescore_and_gather_print_every_score_with_its_interval(
    tiny_model: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = phantoms / "phantom.jsonl"
    words = ["evaluate", "--policy", str(tiny_model), "--samples", str(table), "--root", str(phantoms / "images")]
    words += ["--sampling.max-new-tokens", "4"]
    said = []
    main([*words, "--to", str(tmp_path / "one")])
    said.append(capsys.readouterr().out)
    main(["evaluate", "--rescore", str(tmp_path / "one"), "--to", str(tmp_path / "again")])
    said.append(capsys.readouterr().out)
    for shard in ("1/2", "2/2"):
        main([*words, "--to", str(tmp_path / "shared"), "--shard", shard])
    assert "95 % interval" not in capsys.readouterr().out
    main(["gather", str(tmp_path / "shared")])
    said.append(capsys.readouterr().out)
    for shown in said:
        head, rows = shown.split("95 % interval")
        assert head.startswith("evaluate: ")
        for metric, score in by_metric(tmp_path / "one").items():
            assert f"{metric}: " not in head
            line = next(line for line in rows.splitlines() if line.split()[:1] == [metric])
            assert f"[{100 * score.low:.1f}, {100 * score.high:.1f}]" in line


def test_records_of_answers_are_written_with_their_samples(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,question,answer,prediction\nq1,is it ct?,yes,yes\n", encoding="utf-8")
    (row,) = read_sample_log(tmp_path / "a.csv", policy="theirs").predictions
    assert row.sample_id == "q1"
    assert to_jsonl([row]).count("\n") == 1
