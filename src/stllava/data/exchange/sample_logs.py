"""Reads answers that were given elsewhere, with their questions and references: what `stllava score` scores.

Known are the sample logs of lmms-eval and lm-evaluation-harness (`--log_samples`: samples_*.jsonl), the prediction tables of
VLMEvalKit (TSV, CSV or JSON), evaluations of stllava, and any table or JSON with the columns question, answer and prediction.
Writes nothing.
"""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from stllava.data.benchmarks.own import row_of
from stllava.data.benchmarks.rows import Row, samples_of
from stllava.data.tables import bad_row, read_table
from stllava.errors import StllavaError
from stllava.records import Prediction

ANSWERED = ("prediction", "completion", "response", "output", "model_answer", "generated_text")
"""Columns that hold what a model said, the first that is there."""
REFERENCES = ("answer", "targets", "answers", "target", "reference", "ground_truth", "gt_answer")
IMAGES = ("image", "image_path", "image_id", "image_name", "img_name", "img_path", "img_id", "file_name", "filename")
ASKED = ("question", "query", "prompt", "input")
KEPT = ("id", "question_id", "qid", "choices", "answer_type", "kind", "split", "labels", "category", "l2-category")
"""What else is read of a row, where it has it."""
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
HARNESS = frozenset({"doc", "target", "filtered_resps", "resps"})
"""What every row of a log of lmms-eval has, or all but one."""
LOGGED = "sample"
"""What tasks that stllava wrote add to lmms-eval's log: the whole question."""
NO_IMAGE = "no image named"


class SampleLog(NamedTuple):
    """Answers given elsewhere."""

    predictions: list[Prediction]
    notes: tuple[str, ...]
    """Sentences for the reader of the scores."""


def read_sample_log(path: Path, *, policy: str) -> SampleLog:
    """Every answer of a file with its question and its references, as predictions of `policy`.

    Args:
        path: The file.
        policy: What the model is called.

    Raises:
        StllavaError: Where a row has no question, no reference or no answer.
    """
    table = read_table(path, names=(*ANSWERED, *REFERENCES, *IMAGES, *ASKED, *KEPT), kinds="answers with their questions")
    columns = set(table.columns())
    if {"sample_id", "completion", "targets"} <= columns:
        ours = [Prediction.model_validate(row) for _, row in table.rows]
        return SampleLog(ours, (*table.notes, f"{path.name}: {len(ours)} answers of an evaluation of stllava."))
    rows: list[tuple[int, Mapping[str, object]]]
    if len(HARNESS & columns) >= len(HARNESS) - 1:
        form, rows = "a log of lmms-eval", [(number, _of_harness(path, number, row)) for number, row in table.rows]
    else:
        form, rows = "a table of answers", table.rows
    return _read(path, rows, form=form, notes=table.notes, policy=policy)


def _read(
    path: Path, rows: Sequence[tuple[int, Mapping[str, object]]], *, form: str, notes: tuple[str, ...], policy: str
) -> SampleLog:
    said: list[str] = []
    asked: list[Row] = []
    unnamed = 0
    for number, raw in rows:
        answer = _first(raw, ANSWERED)
        if answer is None:
            raise _lacking(path, number, raw, "answer of a model", ANSWERED)
        question, reference, image = _first(raw, ASKED), _first(raw, REFERENCES), _first(raw, IMAGES)
        if question is None or reference is None:
            raise _lacking(path, number, raw, *(("question", ASKED) if question is None else ("reference", REFERENCES)))
        unnamed += not isinstance(image, str | int)
        kept = {key: raw[key] for key in (*KEPT, *LETTERS) if isinstance(raw.get(key), str | int | list | dict)}
        named = str(raw.get("id", raw.get("question_id", raw.get("qid", raw.get("index", raw.get("doc_id", number))))))
        plain = {
            **kept,
            "id": named,
            "image": str(image) if isinstance(image, str | int) else f"{NO_IMAGE} {named}",
            "question": question,
            "targets" if isinstance(reference, list) else "answer": reference,
        }
        asked.append(row_of(path, number, plain))
        said.append(_text(answer))
    samples = samples_of(path.stem, "test", asked)
    if len(samples) < len(asked):
        raise StllavaError(
            f"{len(asked) - len(samples)} rows of {path} are alike",
            expected="each question once",
            remedy="Remove the repeated rows.",
        )
    notes = (
        *notes,
        f"{path.name} is {form}: {len(asked)} answers, {sum(one.kind == 'closed' for one in samples)} to closed questions.",
    )
    if unnamed:
        notes += (f"{unnamed} rows name no image: each counts as about an image of its own, and intervals are too narrow.",)
    return SampleLog([Prediction.of(one, text, policy=policy) for one, text in zip(samples, said, strict=True)], notes)


def _lacking(path: Path, number: int, row: Mapping[str, object], what: str, known: Sequence[str]) -> StllavaError:
    return bad_row(path, number, f"no {what} among {', '.join(map(str, row))}", expected=f"one of {', '.join(known)}")


def _of_harness(path: Path, number: int, row: Mapping[str, object]) -> dict[str, object]:
    """A row of lmms-eval with the columns of a table: the question and the image stand in its `doc`, if anywhere."""
    doc = row.get(LOGGED, row.get("doc"))
    flat: dict[str, object] = dict(doc) if isinstance(doc, dict) else {}
    answers = row.get("filtered_resps", row.get("resps"))
    while isinstance(answers, list) and answers:
        answers = answers[0]
    if not isinstance(answers, str):
        raise bad_row(path, number, "filtered_resps holds no text", expected="a task that generates text (generate_until)")
    for name in ANSWERED:
        flat.pop(name, None)
    if _first(flat, ASKED) is None and isinstance(row.get("input"), str):
        flat["question"] = row["input"]
    if _first(flat, REFERENCES) is None:
        flat["answer"] = _listed(row.get("target"))
    media = row.get("input_media")
    if _first(flat, IMAGES) is None and isinstance(media, list) and len(media) == 1:
        flat["image"] = media[0]
    return {**flat, "prediction": answers, "doc_id": row.get("doc_id", number)}


def _listed(target: object) -> object:
    """Several references as a list again, which lmms-eval logs as Python writes it; anything else as it is."""
    if isinstance(target, str) and target.startswith("["):
        try:
            found: object = ast.literal_eval(target)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return target
        if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
            return found
    return target


def _first(row: Mapping[str, object], names: Sequence[str]) -> object:
    """The first of these columns that holds something; a model may have said nothing."""
    for name in names:
        value = row.get(name)
        if value is not None and value == value and (value != "" or names is ANSWERED):
            return value
    return None


def _text(value: object) -> str:
    while isinstance(value, list) and value:
        value = value[0]
    return "" if value is None or isinstance(value, list | dict) else str(value)
