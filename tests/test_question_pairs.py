"""Pairs of questions: an informative one over one that nobody can judge or whose answer the policy knows."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.judging import SAMPLING, answers_of, write_answers
from stllava.config import AskOptions, DpoOptions, JudgeOptions, PairOptions
from stllava.data.exchange.outgoing import to_trl
from stllava.errors import StllavaError
from stllava.experts.judged_answers import JudgedAnswers
from stllava.experts.question_pairs import question_pairs
from stllava.model.load import load_policy
from stllava.records import Judgment, Preference, Question, content_id
from stllava.stages.dpo import latest
from stllava.stages.pair import pair
from stllava.store import Stage, read_manifest, read_records, stream_records
from stllava.training.objective import counts_of
from stllava.training.preference_dataset import PreferenceDataset
from stllava.training.preference_steps import PreferenceSteps
from stllava.training.references import measure_reference

OPENING = "Describe the image."
KINDS = ("informative", "settled", "invalid", "failed", "hopeless")
SCORES = {"informative": (1.0, 0.0), "settled": (1.0, 1.0), "hopeless": (0.0, 0.0)}
CAUSES = {"invalid": "abstained", "failed": "unparsed"}


def asked(kind: str, text: str, *, image: str) -> tuple[Question, JudgedAnswers]:
    """A question of a kind, with its judged answers."""
    answers = answers_of(text, ("yes", "no"), image=image)
    question = Question(
        id=answers.question_id, images=(image,), text=text, description=f"of {image}", policy="p", sampling=SAMPLING
    )
    verdict = {"scores": SCORES.get(kind), "cause": CAUSES.get(kind)}
    judgment = Judgment.model_validate(
        {"id": content_id(answers.id), "answers_id": answers.id, "reason": "", "expert": "e", "prompt_hash": "p", **verdict}
    )
    return question, (answers, judgment)


def made_of(rows: list[tuple[str, str, str]], *, max_pairs: int = 9) -> tuple[list[Preference], dict[tuple[str, str], str]]:
    """The pairs of questions given as kind, image and text; and the kind of each image's text."""
    built = [asked(kind, text, image=image) for kind, image, text in rows]
    judged = [answered for _, answered in built]
    informative = {judgment.id for (kind, _, _), (_, judgment) in zip(rows, judged, strict=True) if kind == "informative"}
    pairs = question_pairs(
        judged,
        {question.id: question for question, _ in built},
        informative=informative,
        opening=OPENING,
        max_pairs=max_pairs,
        min_score=0.5,
    )
    return pairs, {(image, text): kind for kind, image, text in rows}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS), st.sampled_from(("a", "b")), st.sampled_from([f"Is it {name}?" for name in "uvwxyz"])
        ),
        unique_by=lambda row: row[1:],
    ),
    st.integers(1, 3),
)
def test_informative_questions_are_chosen_over_invalid_and_settled_ones_of_the_same_image(
    rows: list[tuple[str, str, str]], most: int
) -> None:
    pairs, kind = made_of(rows, max_pairs=most)
    used = []
    for row in pairs:
        (image,) = row.images
        assert kind[image, row.chosen] == "informative"
        assert row.margin == {"invalid": 1.0, "settled": 0.5}[kind[image, row.rejected]]
        assert [turn.content for turn in row.prompt] == [OPENING, f"of {image}"]
        assert row.speaker == "virtual_user"
        used += [(image, row.chosen), (image, row.rejected)]
    assert len(set(used)) == len(used)
    for image in ("a", "b"):
        counts = {name: sum(row[0] == name and row[1] == image for row in rows) for name in KINDS}
        worse = counts["invalid"] + counts["settled"]
        assert sum(row.images == (image,) for row in pairs) == min(most, counts["informative"], worse)


def test_the_rarest_informative_question_is_chosen_and_the_commonest_invalid_one_rejected() -> None:
    rows = [
        ("informative", "a", "Is there a mass?"),
        ("informative", "a", "Which lobe?"),
        ("invalid", "a", "What is it?"),
        ("invalid", "a", "Why so?"),
        ("informative", "b", "Is there a mass?"),
        ("invalid", "c", "What is it?"),
    ]
    (only,), _ = made_of(rows, max_pairs=1)
    assert (only.chosen, only.rejected) == ("Which lobe?", "What is it?")


def test_answers_to_questions_that_are_not_there_are_refused() -> None:
    _, answered = asked("informative", "Which lobe?", image="a")
    with pytest.raises(StllavaError, match="not among the questions"):
        question_pairs([answered], {}, informative=(), opening=OPENING, max_pairs=1, min_score=0.5)


def written(folder: Path, rows: list[tuple[str, str, str]]) -> tuple[Path, Path, Path]:
    """The folders that ask, answer and judge would have written."""
    built = [asked(kind, text, image=image) for kind, image, text in rows]
    asking = Stage("ask", folder / "ask", AskOptions(description_prompt=OPENING), inputs={}, existing="resume")
    asking.write_records("questions", [question for question, _ in built])
    asking.finish(counts_in=len(built), counts_out=len(built))
    answers = write_answers(folder / "answer", [answered for _, (answered, _) in built])
    judging = Stage("judge", folder / "judge", JudgeOptions(), inputs={}, existing="resume")
    judging.write_records("judgments", [judgment for _, (_, judgment) in built])
    judging.finish(counts_in=len(built), counts_out=len(built))
    return folder / "ask", answers, folder / "judge"


ROWS = [("informative", "a", "Which lobe?"), ("informative", "a", "Is it left?"), ("invalid", "a", "Why so?")]
PLAIN = PairOptions(balance=False)


def test_pair_writes_them_beside_its_own_which_do_not_change(tmp_path: Path) -> None:
    questions, answers, judgments = written(tmp_path, ROWS)
    asking = PLAIN.model_copy(update={"question_pairs": 2})
    pair(PLAIN, answers=answers, judgments=judgments, to=tmp_path / "plain")
    pair(asking, answers=answers, judgments=judgments, questions=questions, to=tmp_path / "both")
    plain = read_records(tmp_path / "plain", "preferences", Preference)
    both = read_records(tmp_path / "both", "preferences", Preference)
    assert both[: len(plain)] == plain
    (asking_pair,) = both[len(plain) :]
    assert asking_pair.chosen in {"Is it left?", "Which lobe?"}
    assert asking_pair.rejected == "Why so?"
    assert read_manifest(tmp_path / "both").measures["question_pairs"] == 1
    assert "speaker" not in (tmp_path / "plain" / "preferences.jsonl").read_text(encoding="utf-8")


def test_pair_needs_the_questions_for_them(tmp_path: Path) -> None:
    _, answers, judgments = written(tmp_path, ROWS)
    with pytest.raises(StllavaError, match="no questions are named"):
        pair(PLAIN.model_copy(update={"question_pairs": 2}), answers=answers, judgments=judgments, to=tmp_path / "pairs")


def test_trl_is_given_the_pairs_of_answers_alone(tmp_path: Path) -> None:
    questions, answers, judgments = written(tmp_path, ROWS)
    asking = PLAIN.model_copy(update={"question_pairs": 2})
    pair(asking, answers=answers, judgments=judgments, questions=questions, to=tmp_path / "pairs")
    assert to_trl(tmp_path / "pairs", to=tmp_path / "trl.jsonl") == 2
    assert sum(1 for _ in stream_records(tmp_path / "pairs", "preferences", Preference)) == 3


def test_of_questions_about_an_image_the_last_rounds_pairs_are_learned(tmp_path: Path) -> None:
    asking = PLAIN.model_copy(update={"question_pairs": 2})
    for name, rows in (("first", ROWS), ("second", [*ROWS[1:2], ("invalid", "a", "What else?")])):
        questions, answers, judgments = written(tmp_path / name, rows)
        pair(asking, answers=answers, judgments=judgments, questions=questions, to=tmp_path / name / "pair")
    learned = [row for row in latest([tmp_path / "first/pair", tmp_path / "second/pair"]) if row.speaker != "assistant"]
    assert [row.rejected for row in learned] == ["What else?"]


def test_dpo_learns_to_ask_in_the_tree_of_the_answers(tiny_model: Path, phantoms: Path) -> None:
    image = sorted(path.name for path in (phantoms / "images").rglob("*.png"))[0]
    place = next((phantoms / "images").rglob(image)).relative_to(phantoms / "images").as_posix()
    (asked_first,), _ = made_of([("informative", place, "is there a mass?"), ("invalid", place, "what is it like?")])
    own = asked_first.model_copy(
        update={
            "id": "own",
            "prompt": asked_first.prompt[:1],
            "chosen": "a chest",
            "rejected": "a head",
            "speaker": "assistant",
        }
    )
    losses = {}
    for pack in (True, False):
        policy = load_policy(tiny_model)
        policy.packs = pack
        dataset = PreferenceDataset(policy, [asked_first, own], images=phantoms / "images", max_tokens=4096)
        assert len(dataset) == 1
        options = DpoOptions(nll=0.5, replay=0)
        steps = PreferenceSteps(policy, dataset, measure_reference(dataset, policy, weights="mine"), None, options, 0)
        optimizer, seen = torch.optim.SGD(policy.model.parameters(), lr=0.05), []
        for _ in range(3):
            (batch,) = steps.collate([steps.example(0, 0)])
            loss, figures = steps.loss(policy.model, batch, counts_of(batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(float(loss.detach()))
        losses[pack] = seen
        assert seen[-1] < seen[0]
        assert figures
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
