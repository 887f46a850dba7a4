"""ask, answer, judge, pair and evaluate on records."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.judging import answers_of, many_answers, write_answers
from stllava.config import (
    AnswerOptions,
    AskOptions,
    EvaluateOptions,
    JudgeOptions,
    PairOptions,
    SamplingOptions,
    ScriptedOptions,
)
from stllava.data.benchmarks.own import read_samples
from stllava.data.conversations import read_conversations
from stllava.dropped import Dropped
from stllava.errors import NothingLeftError, StllavaError
from stllava.generation.sampler import Completion, Prompt
from stllava.metrics.score import compare, score
from stllava.records import (
    Answers,
    Conversation,
    Judgment,
    Manifest,
    Overlap,
    Prediction,
    Question,
    Sample,
    Sampling,
    Vote,
)
from stllava.stages.answer import answer
from stllava.stages.ask import ask, best_descriptions, request_descriptions, screen
from stllava.stages.baselines import guess, majority
from stllava.stages.evaluate import evaluate, worded
from stllava.stages.final_data import final_data
from stllava.stages.judge import check, judge
from stllava.stages.pair import pair
from stllava.stages.rescore import rescore
from stllava.store import Stage, read_manifest, read_records, to_jsonl, write_whole

SHORT = SamplingOptions(temperature=1.2, top_k=0, top_p=1.0, max_new_tokens=6)
HOW = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8, seed=0)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("is there a mass?", None),
        ("Is there  a MASS?", "repeated"),
        ("", "empty"),
        ("   ", "empty"),
        ("there is a mass.", "not a question"),
        ("why?", "not a question"),
        ("is " + "very " * 80 + "large?", "too long"),
    ],
    ids=["kept", "repeated", "empty", "blank", "statement", "one word", "rambling"],
)
def test_unusable_questions_are_dropped_and_counted_by_cause(text: str, cause: str | None) -> None:
    dropped = Dropped()
    kept = screen(["is there a mass?", text] if cause == "repeated" else [text], dropped)
    assert dropped == ({} if cause is None else {cause: 1})
    assert kept == (["is there a mass?"] if cause in (None, "repeated") else [])


def asked(tiny_model: Path, phantoms: Path, to: Path, *, images: Path | None = None) -> Path:
    options = AskOptions(questions=2, chunk=2, sampling=SHORT, description_sampling=SHORT)
    ask(options, policy=tiny_model, images=images or phantoms / "images.jsonl", root=phantoms / "images", to=to, seed=1)
    return to


def by_hand(folder: Path, texts: list[str]) -> Path:
    """A finished ask stage that asked `texts` of the first unlabelled image."""
    stage = Stage("ask", folder, AskOptions(), inputs={}, existing="resume")
    stage.write_records(
        "questions",
        [
            Question(id=f"q{place}", images=("unlabelled/00000.png",), text=text, description="", policy="p", sampling=HOW)
            for place, text in enumerate(texts)
        ],
    )
    stage.finish(counts_in=len(texts), counts_out=len(texts))
    return folder


def test_every_question_asked_is_kept_or_counted(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    manifest = read_manifest(asked(tiny_model, phantoms, tmp_path / "ask"))
    assert manifest.counts_in == 4 * 2 == manifest.counts_out + sum(manifest.dropped.values())
    assert manifest.counts_out > 0 or manifest.notes[-1].startswith("None of so few questions can be used")


def test_an_unusable_image_costs_its_own_questions_only(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    rows = (phantoms / "images.jsonl").read_text() + '{"id": "x", "path": "gone.png"}\n{"id": "y", "path": "../up.png"}\n'
    write_whole(tmp_path / "images.jsonl", rows)
    manifest = read_manifest(asked(tiny_model, phantoms, tmp_path / "ask", images=tmp_path / "images.jsonl"))
    assert manifest.dropped["image missing"] == 2
    assert manifest.dropped["image outside-root"] == 2
    assert manifest.counts_in == 12


def test_ask_goes_on_from_the_description_that_the_expert_chose(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    root, images = phantoms / "images", phantoms / "images.jsonl"
    options = AskOptions(questions=2, chunk=2, sampling=SHORT)
    request_descriptions(options, policy=tiny_model, images=images, root=root, to=tmp_path / "request")
    requests = read_records(tmp_path / "request", "questions", Question)
    assert [one.text for one in requests] == ["Describe the image."] * 4
    stage = Stage("answer", tmp_path / "answer", AnswerOptions(), inputs={}, existing="resume")
    told = [
        Answers(
            id=f"a{place}",
            question_id=one.id,
            images=one.images,
            question=one.text,
            completions=("worse", f"normal chest ct number {place}", "worse"),
            policy="p",
            sampling=HOW,
        )
        for place, one in enumerate(requests)
    ]
    stage.write_records("answers", told)
    stage.finish(counts_in=4, counts_out=4)
    stage = Stage("judge", tmp_path / "judge", JudgeOptions(), inputs={}, existing="resume")
    marks = [(0.0, 1.0, 0.0), (0.2, 0.9, 0.2), (0.0, 0.5, 0.1), None]
    stage.write_records(
        "judgments",
        [
            Judgment(
                id=f"j{place}",
                answers_id=f"a{place}",
                scores=scores,
                cause=None if scores else "abstained",
                reason="",
                expert="e",
                prompt_hash="h",
            )
            for place, scores in enumerate(marks)
        ],
    )
    stage.finish(counts_in=4, counts_out=4)
    descriptions, verdicts = tmp_path / "answer", tmp_path / "judge"
    best = best_descriptions(descriptions, verdicts)
    assert best == {one.images[0]: f"normal chest ct number {place}" for place, one in enumerate(requests[:3])}
    ask(
        options,
        policy=tiny_model,
        images=images,
        root=root,
        to=tmp_path / "ask",
        described=descriptions,
        verdicts=verdicts,
        seed=1,
    )
    ask(options, policy=tiny_model, images=images, root=root, to=tmp_path / "alone", seed=1)
    own = {one.images[0]: one.description for one in read_records(tmp_path / "alone", "questions", Question)}
    for one in read_records(tmp_path / "ask", "questions", Question):
        assert one.description == best.get(one.images[0], own.get(one.images[0]))


def test_ask_answer_judge_and_pair_follow_each_other_until_nothing_is_left(
    tiny_model: Path, phantoms: Path, tmp_path: Path
) -> None:
    texts = ["is the image normal?", "what abnormality is seen?", "is this image nice or not?"]
    questions, root = by_hand(tmp_path / "ask", texts), phantoms / "images"
    answer(
        AnswerOptions(num_answers=3, sampling=SHORT),
        policy=tiny_model,
        questions=questions,
        root=root,
        to=tmp_path / "answer",
        seed=1,
    )
    answers = read_records(tmp_path / "answer", "answers", Answers)
    assert [len(one.completions) for one in answers] == [3, 3, 3]
    cut = sum(one.finished.count(False) for one in answers)
    assert cut > 0
    manifest = read_manifest(tmp_path / "answer")
    assert manifest.measures["cut_share"] == cut / 9
    assert f"{cut} of 9 answers were cut off at 6 tokens" in manifest.notes[-1]
    judge(JudgeOptions(), answers=tmp_path / "answer", truth=phantoms / "truths.jsonl", to=tmp_path / "judge")
    judgments = read_records(tmp_path / "judge", "judgments", Judgment)
    assert [judgment.answers_id for judgment in judgments] == [one.id for one in answers]
    assert judgments[2].scores is None
    assert judgments[2].cause == "abstained"
    with pytest.raises(NothingLeftError, match=r"came of 3 judgments: 2 × tie, 1 × abstained; for example: 'is the image"):
        pair(PairOptions(), answers=tmp_path / "answer", judgments=tmp_path / "judge", to=tmp_path / "pair")


def test_what_a_knowing_expert_could_not_judge_is_not_answered(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    texts = ["is the image normal?", "is this image nice or not?", "what abnormality is seen?"]
    questions, truth = by_hand(tmp_path / "ask", texts), phantoms / "truths.jsonl"
    options, given = AnswerOptions(num_answers=3, sampling=SHORT), {}
    for name, expert in {"all": None, "asked": "chat", "spared": "oracle"}.items():
        to = tmp_path / name
        made = answer(
            options,
            policy=tiny_model,
            questions=questions,
            root=phantoms / "images",
            to=to,
            expert=expert,
            truth=truth,
            seed=1,
        ).manifest
        assert made.dropped == ({"no verdict by oracle": 1} if name == "spared" else {})
        assert made.counts_in == made.counts_out + sum(made.dropped.values()) == 3
        given[name] = read_records(to, "answers", Answers)
    assert given["asked"] == given["all"]
    assert given["spared"] == [one for one in given["all"] if one.question != texts[1]]
    judge(JudgeOptions(), answers=tmp_path / "spared", truth=truth, to=tmp_path / "judge")
    assert all(judgment.scores is not None for judgment in read_records(tmp_path / "judge", "judgments", Judgment))


def test_what_the_rounds_found_right_is_learned_beside_the_labels(phantoms: Path, tmp_path: Path) -> None:
    def made(number: int, rows: list[tuple[str, tuple[str, ...], tuple[float, ...] | None]]) -> tuple[Path, Path]:
        at = tmp_path / str(number)
        stage = Stage("answer", at / "answer", AnswerOptions(), inputs={}, existing="resume")
        stage.write_records(
            "answers",
            [
                Answers(
                    id=f"{number}{place}", question_id="q", images=("x.png",), question=question, completions=texts,
                    finished=tuple(text != "cut" for text in texts), policy="p", sampling=HOW,
                )
                for place, (question, texts, _) in enumerate(rows)
            ],
        )  # fmt: skip
        stage.finish(counts_in=len(rows), counts_out=len(rows))
        stage = Stage("judge", at / "judge", JudgeOptions(), inputs={}, existing="resume")
        stage.write_records(
            "judgments",
            [
                Judgment(
                    id=f"j{number}{place}", answers_id=f"{number}{place}", scores=scores, reason="", expert="e",
                    cause=None if scores else "abstained", prompt_hash="",
                )
                for place, (_, _, scores) in enumerate(rows)
            ],
        )  # fmt: skip
        stage.finish(counts_in=len(rows), counts_out=len(rows))
        return at / "answer", at / "judge"

    first = made(1, [("where?", ("left", "right"), (1.0, 0.0)), ("what?", ("a", "b"), (0.5, 0.0)), ("how?", ("x",), None)])
    second = made(2, [("where?", ("up", "down"), (0.0, 1.0)), ("is it?", ("yes",), (1.0,)), ("size?", ("big", "big"), (1, 1))])
    third = made(
        3,
        [
            ("whole?", ("cut", "whole"), (1.0, 1.0)),
            ("cut?", ("cut", "bad"), (1.0, 0.0)),
            ("who?", (" ", "bad"), (1.0, 0.0)),
        ],
    )
    labels = phantoms / "conversations.jsonl"
    options = PairOptions(min_chosen_score=1.0)
    manifest = final_data(options, conversations=labels, rounds=[first, second, third], to=tmp_path / "final").manifest
    known = read_conversations(labels)[0]
    kept = read_records(tmp_path / "final", "conversations", Conversation)
    assert kept[: len(known)] == known
    said = {row.messages[0].content: row.messages[1].content for row in kept[len(known) :]}
    assert said == {"where?": "down", "size?": "big", "whole?": "whole"}  # yes has no no to balance it
    left_out = {"answer cut off": 1, "empty answer": 1, "surplus of denials": 0, "surplus of yes or no": 1}
    assert manifest.dropped == left_out


def test_what_is_a_label_already_is_learned_once(phantoms: Path, tmp_path: Path) -> None:
    label = next(row for row in read_conversations(phantoms / "conversations.jsonl")[0] if len(row.messages) == 2)
    [question, answer] = [turn.content for turn in label.messages]
    given = [answers_of(question, (answer, "no such thing"), image=label.images[0]), answers_of("where?", ("left", "right"))]
    answers = write_answers(tmp_path / "answers", given)
    scripted = JudgeOptions(expert="scripted", scripted=ScriptedOptions(prefer=(answer, "left")))
    judge(scripted, answers=answers, to=tmp_path / "judgments")
    labels = tmp_path / "labels.jsonl"
    write_whole(labels, to_jsonl([label]))
    options = PairOptions(balance=False, min_chosen_score=0)
    made = final_data(options, conversations=labels, rounds=[(answers, tmp_path / "judgments")], to=tmp_path / "final")
    assert made.manifest.dropped["already a label"] == 1
    kept = read_conversations(made.conversations)[0]  # Which refuses an id that stands twice.
    assert [row.messages[1].content for row in kept] == [answer, "left"]


def test_judgments_of_other_answers_are_refused(phantoms: Path, tiny_model: Path, tmp_path: Path) -> None:
    root, truth = phantoms / "images", phantoms / "truths.jsonl"
    for name, text in (("one", "is the image normal?"), ("two", "what abnormality is seen?")):
        questions = by_hand(tmp_path / name / "ask", [text])
        answer(AnswerOptions(sampling=SHORT), policy=tiny_model, questions=questions, root=root, to=tmp_path / name / "answer")
        judge(JudgeOptions(), answers=tmp_path / name / "answer", truth=truth, to=tmp_path / name / "judge")
    with pytest.raises(StllavaError, match="one and the same round"):
        pair(PairOptions(), answers=tmp_path / "one/answer", judgments=tmp_path / "two/judge", to=tmp_path / "pair")


def test_an_expert_without_knowledge_is_refused(phantoms: Path, tiny_model: Path, tmp_path: Path) -> None:
    questions = by_hand(tmp_path / "ask", ["is the image normal?"])
    root = phantoms / "images"
    answer(AnswerOptions(sampling=SHORT), policy=tiny_model, questions=questions, root=root, to=tmp_path / "answer")
    with pytest.raises(StllavaError, match="nothing to compare answers with"):
        judge(JudgeOptions(expert="reference"), answers=tmp_path / "answer", truth=None, to=tmp_path / "judge")


def test_evaluate_keeps_every_answer_and_scores_it(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    samples = phantoms / "phantom.jsonl"
    to = tmp_path / "scores"
    evaluate(EvaluateOptions(), policy=tiny_model, samples=samples, root=phantoms / "images", to=to, name="tiny")
    predictions = read_records(to, "predictions", Prediction)
    wanted = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [row.sample_id for row in predictions] == [row["id"] for row in wanted]
    measures = read_manifest(to).measures
    assert measures == {one.metric: one.value for one in score(predictions, policy="tiny", benchmark="phantom")}
    cut = sum(not row.finished for row in predictions)
    assert f"{cut} of {len(predictions)} answers were cut off at 64 tokens" in " ".join(read_manifest(to).notes)


class _ThinksAloud:
    """A policy that thinks before each description and each question."""

    device, notes = "cpu", ()

    def close(self) -> None:
        """Nothing outlives it."""

    def check(self, prompt: Prompt) -> None:
        """Take every prompt."""

    def complete(
        self, prompts: Sequence[Prompt], *, k: int, sampling: SamplingOptions, seed: int
    ) -> list[tuple[Completion, ...]]:
        """A thought and what follows it, or, every second time, a thought without an end."""
        said = "what is on the left?" if prompts[0].speaker == "virtual_user" else "a chest x-ray"
        texts = (f"<think>Is it normal?</think>\n{said}", "<think>What else? Where is it?")
        return [tuple(Completion(texts[number % 2]) for number in range(k)) for _ in prompts]


def test_what_a_policy_thinks_aloud_is_neither_a_description_nor_a_question(
    tiny_model: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stllava.generation.local_sampler.open_sampler", lambda *_, **__: _ThinksAloud())
    root = phantoms / "images"
    manifest = ask(AskOptions(questions=2), policy=tiny_model, images=root, root=root, to=tmp_path / "ask").manifest
    asked = read_records(tmp_path / "ask", "questions", Question)
    assert {(one.description, one.text) for one in asked} == {("a chest x-ray", "what is on the left?")}
    assert manifest.dropped == {"empty": len(asked)}


def test_the_words_of_a_prompt_are_asked_and_kept(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    samples, root = phantoms / "phantom.jsonl", phantoms / "images"
    options = EvaluateOptions(prompts={"phantom": "Look well. {question} Answer in one word."})
    evaluate(options, policy=tiny_model, samples=samples, root=root, to=tmp_path / "scores")
    for row in read_records(tmp_path / "scores", "predictions", Prediction):
        assert row.prompt == f"Look well. {row.question} Answer in one word."
    with pytest.raises(ValueError, match="question"):
        EvaluateOptions(prompt="no place for it")


def test_a_multiple_choice_question_is_asked_with_its_options() -> None:
    one = sample("a", "liver", "closed").model_copy(update={"choices": ("lung", "liver")})
    assert worded(one, "{question}\nLetter:") == "?\nA. lung\nB. liver\nLetter:"
    named = one.model_copy(update={"question": "Is it the lung, or the LIVER?"})
    assert worded(named, "{question}") == named.question
    assert worded(named.model_copy(update={"question": "Is it the lung?"}), "{question}").endswith("\nA. lung\nB. liver")


def test_rescoring_generates_nothing_and_gives_the_same_scores(
    tiny_model: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, root = phantoms / "phantom.jsonl", phantoms / "images"
    first = evaluate(
        EvaluateOptions(), policy=tiny_model, samples=samples, root=root, to=tmp_path / "one", name="tiny"
    ).manifest
    monkeypatch.setattr("stllava.generation.local_sampler.open_sampler", None)
    again = rescore(EvaluateOptions(), predictions=tmp_path / "one", to=tmp_path / "two").manifest
    assert again.measures == first.measures
    assert (tmp_path / "one" / "scores.jsonl").read_bytes() == (tmp_path / "two" / "scores.jsonl").read_bytes()
    write_whole(tmp_path / "candidates.json", '["left", "mass"]')
    more = rescore(
        EvaluateOptions(), predictions=tmp_path / "one", to=tmp_path / "three", candidates=tmp_path / "candidates.json"
    ).manifest
    assert set(more.measures) - set(first.measures) == {"llava_med_open_accuracy"}


def test_an_expert_scores_open_answers_through_judge_and_rescore(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    samples, root = phantoms / "phantom.jsonl", phantoms / "images"
    evaluate(EvaluateOptions(), policy=tiny_model, samples=samples, root=root, to=tmp_path / "one", name="tiny")
    scripted = JudgeOptions(expert="scripted", mode="pairwise")
    judge(scripted, answers=tmp_path / "one", truth=None, root=root, to=tmp_path / "verdicts")
    made = rescore(
        EvaluateOptions(), predictions=tmp_path / "one", to=tmp_path / "two", verdicts=tmp_path / "verdicts"
    ).manifest
    assert 0 <= made.measures["open_semantic"] <= 1
    assert any("Cohen's kappa" in note for note in made.notes)


def test_a_folder_without_judgments_scores_nothing_again(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    closed = [row for row in read_samples(phantoms / "phantom.jsonl")[0] if row.kind == "closed"]
    samples, root = tmp_path / "closed.jsonl", phantoms / "images"
    write_whole(samples, to_jsonl(closed))
    evaluate(EvaluateOptions(), policy=tiny_model, samples=samples, root=root, to=tmp_path / "one", name="tiny")
    judge(JudgeOptions(expert="scripted"), answers=tmp_path / "one", truth=None, root=root, to=tmp_path / "verdicts")
    with pytest.raises(StllavaError, match="holds no judgment"):
        rescore(EvaluateOptions(), predictions=tmp_path / "one", to=tmp_path / "two", verdicts=tmp_path / "verdicts")


def test_judgments_of_other_answers_are_refused_by_whatever_reads_them(
    tiny_model: Path, phantoms: Path, tmp_path: Path
) -> None:
    samples, root = phantoms / "phantom.jsonl", phantoms / "images"
    one = tmp_path / "one"
    evaluate(EvaluateOptions(), policy=tiny_model, samples=samples, root=root, to=one, name="tiny")
    others = write_answers(tmp_path / "others", many_answers(3))
    judge(JudgeOptions(expert="scripted"), answers=others, truth=None, root=root, to=tmp_path / "verdicts")
    with pytest.raises(StllavaError, match="the judgments of these answers"):
        rescore(EvaluateOptions(), predictions=one, to=tmp_path / "two", verdicts=tmp_path / "verdicts")
    with pytest.raises(StllavaError, match="the judgments of these answers"):
        best_descriptions(one, tmp_path / "verdicts")
    answers_id = read_records(others, "answers", Answers)[0].id
    vote = Vote(id="v", answers_id=answers_id, first=0, second=1, winner=0)
    write_whole(tmp_path / "votes.jsonl", vote.model_dump_json() + "\n")
    with pytest.raises(StllavaError, match="votes on these answers"):
        check(JudgeOptions(expert="scripted"), answers=one, root=root, votes=tmp_path / "votes.jsonl", to=tmp_path / "check")


def test_what_was_learned_is_refused_as_a_test(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    samples, root = phantoms / "phantom.jsonl", phantoms / "images"

    def scored(name: str, learned: Path, *, allow_overlap: bool = False) -> Manifest:
        to = tmp_path / name
        return evaluate(
            EvaluateOptions(),
            policy=tiny_model,
            samples=samples,
            root=root,
            to=to,
            learned=[learned],
            allow_overlap=allow_overlap,
        ).manifest

    with pytest.raises(StllavaError, match="Of 3 test images of phantom, 3 are byte for byte"):
        scored("a", samples)
    allowed = scored("b", samples, allow_overlap=True)
    assert any(note.startswith("Of 3 test images") for note in allowed.notes)
    (overlap,) = read_records(tmp_path / "b", "overlaps", Overlap)
    assert overlap.triplets == overlap.samples
    clean = scored("c", phantoms / "conversations.jsonl")
    assert any(note.startswith("None of 3 test images") for note in clean.notes)


def sample(name: str, target: str, kind: str) -> Sample:
    return Sample.model_validate(
        {"id": name, "image": f"{name}.png", "question": "?", "targets": [target], "kind": kind, "split": "test"}
    )


def test_the_majority_baseline_knows_the_validation_split_only(tmp_path: Path) -> None:
    known = [
        sample("a", "Yes", "closed"),
        sample("b", "no", "closed"),
        sample("c", "yes", "closed"),
        sample("d", "lung", "open"),
    ]
    tests = [
        sample("e", "no", "closed"),
        sample("f", "no", "closed"),
        sample("g", "yes", "closed"),
        sample("h", "liver", "open"),
    ]
    for name, rows in (("known", known), ("tests", tests)):
        write_whole(tmp_path / f"{name}.jsonl", to_jsonl(rows))
    made = majority(
        EvaluateOptions(), known=tmp_path / "known.jsonl", samples=tmp_path / "tests.jsonl", to=tmp_path / "out"
    ).manifest
    assert made.measures["closed_accuracy"] == pytest.approx(1 / 3)
    assert made.measures["open_exact_match"] == 0


def test_the_random_baseline_draws_from_what_it_knows_or_the_options(tmp_path: Path) -> None:
    known = [sample("a", "Yes", "closed"), sample("b", "no", "closed"), sample("c", "lung", "open")]
    choice = sample("m", "liver", "closed").model_copy(update={"choices": ("lung", "liver")})
    tests = [*(sample(f"t{n}", "yes", "closed") for n in range(40)), sample("o", "lung", "open"), choice]
    for name, rows in (("known", known), ("tests", tests)):
        write_whole(tmp_path / f"{name}.jsonl", to_jsonl(rows))
    made = guess(
        EvaluateOptions(), known=tmp_path / "known.jsonl", samples=tmp_path / "tests.jsonl", to=tmp_path / "out"
    ).manifest
    said = {row.sample_id: row.completion for row in read_records(tmp_path / "out", "predictions", Prediction)}
    assert {said[f"t{n}"] for n in range(40)} == {"yes", "no"}
    assert said["o"] == "lung"
    assert said["m"] in ("lung", "liver")
    assert made.measures["open_exact_match"] == 1


def test_the_paired_difference_compares_the_same_samples() -> None:
    def answers_of(policy: str, texts: list[str]) -> list[Prediction]:
        return [
            Prediction(
                id=f"{policy}{n}",
                sample_id=str(n),
                image=f"{n}.png",
                question="?",
                targets=("yes",),
                kind="closed",
                completion=text,
                policy=policy,
            )
            for n, text in enumerate(texts)
        ]

    better, worse = answers_of("b", ["yes"] * 8), answers_of("w", ["yes"] * 4 + ["no"] * 4)
    gain, *_ = compare(better, worse, policy="b", against="w", benchmark="x")
    loss, *_ = compare(worse, better, policy="w", against="b", benchmark="x")
    assert gain.metric == "closed_accuracy"
    assert gain.p == loss.p
    assert gain.value == 0.5 == -loss.value
    assert 0 < gain.low <= 0.5 <= gain.high
    assert (loss.low, loss.high) == pytest.approx((-gain.high, -gain.low))
