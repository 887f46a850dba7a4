"""Answers read side by side with their judgments, in whatever order these stand."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.judging import many_answers, write_answers
from stllava.config import JudgeOptions
from stllava.errors import StllavaError
from stllava.experts import judged_answers
from stllava.experts.judged_answers import read_judged_answers
from stllava.records import Answers, Judgment, content_id
from stllava.store import Stage, read_jsonl
from stllava.store.jsonl import to_jsonl

GIVEN = many_answers(30)


def judged(folder: Path, answers: list[Answers]) -> Path:
    """A finished judge stage with a judgment of each of the answers, in their order."""
    stage = Stage("judge", folder, JudgeOptions(), inputs={}, existing="resume")
    rows = [
        Judgment(
            id=content_id(row.id), answers_id=row.id, scores=(0.0, 1.0), cause=None, reason="", expert="e", prompt_hash="h"
        )
        for row in answers
    ]
    stage.write_records("judgments", rows)
    stage.finish(counts_in=len(rows), counts_out=len(rows))
    return folder


@pytest.mark.parametrize(
    "order",
    [
        lambda rows: rows,
        lambda rows: rows[::3],
        lambda rows: [*rows[::2], *rows[1::2]],
        lambda rows: rows[::-1],
        lambda rows: random.Random(0).sample(rows, len(rows)),
        lambda rows: [row for row in rows for _ in range(2)],
    ],
    ids=["theirs", "some", "the expert's, then the votes", "backwards", "any", "each twice"],
)
def test_every_judgment_comes_with_its_answers_in_the_order_of_the_judgments(
    order: Callable[[list[Answers]], list[Answers]], tmp_path: Path
) -> None:
    found = read_judged_answers(write_answers(tmp_path / "a", GIVEN), judged(tmp_path / "j", order(GIVEN)))
    for _ in range(2):
        assert [answers for answers, _ in found] == order(GIVEN)
        assert all(judgment.answers_id == answers.id for answers, judgment in found)


def test_judgments_in_order_are_read_without_holding_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged_answers, "STARTS", 2)
    twice = judged(tmp_path / "j", [*GIVEN[::2], *GIVEN[1::2]])
    starts = 0
    found = read_judged_answers(write_answers(tmp_path / "a", GIVEN), twice)
    rows = found._answers

    class Counting:
        def __iter__(self) -> object:
            nonlocal starts
            starts += 1
            return iter(rows)

    monkeypatch.setattr(found, "_answers", Counting())
    assert len(list(found)) == len(GIVEN)
    assert starts == 2


def test_a_judgment_of_other_answers_is_refused(tmp_path: Path) -> None:
    found = read_judged_answers(write_answers(tmp_path / "a", GIVEN[:9]), judged(tmp_path / "j", GIVEN))
    with pytest.raises(StllavaError, match=f"is about answers {GIVEN[9].id}, which .* does not hold"):
        list(found)


def test_of_many_ids_the_one_that_stands_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    rows = many_answers(50)
    (tmp_path / "rows.jsonl").write_text(to_jsonl([*rows, rows[17]]))
    with pytest.raises(StllavaError, match=f"line 51: id '{rows[17].id}' stands in line 18 already"):
        read_jsonl(tmp_path / "rows.jsonl", Answers)
