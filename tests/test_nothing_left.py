"""Stages of which nothing comes, or too little: they say so, with the cause, before they cost much."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from helpers.plain_work import PlainWork
from stllava.cli import main
from stllava.config import (
    AnswerOptions,
    AskOptions,
    DpoOptions,
    EvaluateOptions,
    PairOptions,
    SamplingOptions,
    SftOptions,
)
from stllava.dropped import LET_PASS, Dropped
from stllava.errors import ItemError, NothingLeftError, StllavaError
from stllava.records import (
    Answers,
    Image,
    Judgment,
    Lineage,
    Manifest,
    Message,
    Preference,
    Question,
    Sample,
    Sampling,
    VerdictCause,
)
from stllava.stages.answer import answer
from stllava.stages.ask import ask
from stllava.stages.dpo import dpo
from stllava.stages.evaluate import evaluate
from stllava.stages.pair import pair
from stllava.stages.predict import predict
from stllava.stages.sft import sft
from stllava.store import HOPELESS, PARTS, Stage, read_manifest, to_jsonl, write_whole

HOW = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8, seed=0)
SHORT = SamplingOptions(temperature=1.2, top_k=0, top_p=1.0, max_new_tokens=4)
FIVE_PERCENT = 0.05


def finished(folder: Path, name: str, rows: Sequence[Question | Answers | Judgment | Preference]) -> Path:
    """A finished stage with these records."""
    stage = Stage(name, folder, PairOptions(), inputs={}, existing="resume")
    stage.write_records(name, rows)
    stage.finish(counts_in=len(rows), counts_out=len(rows))
    return folder


@pytest.fixture
def work(tmp_path: Path, phantoms: Path) -> Path:
    """A folder with the input of every stage, about images that are all in `phantoms`."""
    images = [f"unlabelled/{number:05d}.png" for number in range(4)]
    asked = [
        Question(id=f"q{n}", images=(image,), text="is it?", description="", policy="p", sampling=HOW)
        for n, image in enumerate(images)
    ]
    finished(tmp_path / "questions", "questions", asked)
    pairs = [
        Preference(
            id=f"p{n}", images=(image,), prompt=(Message(role="user", content="is it?"),), chosen="yes", rejected="no",
            margin=1, lineage=Lineage(question_id="q", answers_id="a", judgment_id="j"),
        )
        for n, image in enumerate(images)
    ]  # fmt: skip
    finished(tmp_path / "preferences", "preferences", pairs)
    samples = [
        Sample(id=f"s{n}", image=image, question="is it?", targets=("yes",), kind="closed", split="test")
        for n, image in enumerate(images)
    ]
    write_whole(tmp_path / "samples.jsonl", to_jsonl(samples))
    write_whole(tmp_path / "images.jsonl", to_jsonl([Image(id=image, path=image) for image in images]))
    return tmp_path


STAGES: dict[str, Callable[[Path, Path, Path, Path], Manifest]] = {
    "ask": lambda work, model, root, _: (
        ask(AskOptions(), policy=model, images=work / "images.jsonl", root=root, to=work / "to").manifest
    ),
    "answer": lambda work, model, root, _: (
        answer(AnswerOptions(), policy=model, questions=work / "questions", root=root, to=work / "to").manifest
    ),
    "evaluate": lambda work, model, root, _: (
        evaluate(EvaluateOptions(), policy=model, samples=work / "samples.jsonl", root=root, to=work / "to").manifest
    ),
    "predict": lambda work, model, root, _: (
        predict(EvaluateOptions(), policy=model, questions=work / "samples.jsonl", root=root, to=work / "to").manifest
    ),
    "sft": lambda work, model, root, talks: (
        sft(SftOptions(), model=str(model), conversations=talks, images=root, to=work / "to").manifest
    ),
    "dpo": lambda work, model, root, talks: (
        dpo(
            DpoOptions(), policy=model, preferences=work / "preferences", conversations=talks, images=root, to=work / "to"
        ).manifest
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_wrong_image_root_ends_a_stage_before_a_model_is_loaded(
    name: str, work: Path, tiny_model: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `evaluate --root` one folder too high scored nothing, 451 of 451 images missing, and said that it had succeeded.
    monkeypatch.setattr("stllava.generation.local_sampler.load_policy", None)
    monkeypatch.setattr("stllava.model.adapters.load_policy", None)
    with pytest.raises(
        NothingLeftError, match=r"(\d+) of \1 \w+ cannot be used: \1 × image missing; for example: \S+\.png"
    ) as told:
        STAGES[name](work, tiny_model, phantoms, phantoms / "conversations.jsonl")
    assert f"does not exist in {phantoms}" in str(told.value)
    assert "Check the image root" in str(told.value)


@pytest.mark.parametrize("name", ["answer", "evaluate", "predict", "sft"])
def test_the_same_command_goes_on_once_a_mistake_is_put_right(name: str, work: Path, tiny_model: Path, phantoms: Path) -> None:
    right = (phantoms / "conversations.jsonl").read_text(), (work / "samples.jsonl").read_text()
    talks = work / "talks.jsonl"
    talks.write_text(right[0] + "{broken\n")
    (work / "samples.jsonl").write_text(right[1] + "{broken\n")
    if name != "answer":
        with pytest.raises(StllavaError, match=r"\.jsonl, (line|row) \d+"):
            STAGES[name](work, tiny_model, phantoms / "images", talks)
    talks.write_text(right[0])
    (work / "samples.jsonl").write_text(right[1])
    with pytest.raises(NothingLeftError, match="does not exist in"):
        STAGES[name](work, tiny_model, phantoms, talks)
    assert STAGES[name](work, tiny_model, phantoms / "images", talks).counts_out > 0


def test_ask_over_unusable_images_ends_with_an_error(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pix").mkdir()
    (tmp_path / "pix" / "a.png").write_bytes(b"")
    (tmp_path / "pix" / "b.jpg").write_bytes(b"no picture")
    where = ["--images", str(tmp_path / "pix"), "--root", str(tmp_path / "pix")]
    with pytest.raises(SystemExit) as left:
        main(["ask", "--policy", str(tiny_model), *where, "--to", str(tmp_path / "q")])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "2 of 2 images cannot be used: 1 × image empty, 1 × image not-an-image; for example: a.png has no bytes" in said


def test_a_folder_without_images_is_no_success(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"DICM")
    with pytest.raises(StllavaError, match=r"no images in .*expected files that end in \.bmp"):
        ask(AskOptions(), policy=tiny_model, images=tmp_path, root=tmp_path, to=tmp_path / "q")


def test_a_conversion_of_which_nothing_comes_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text('[{"image": "a.png", "conversations": [{"from": "nobody", "value": "is it?"}]}]')
    with pytest.raises(SystemExit) as left:
        main(["convert", "conversations", str(tmp_path / "a.json"), "--to", str(tmp_path / "b.json")])
    assert left.value.code == 2
    assert "a.json: 1 × unknown speaker; for example:" in capsys.readouterr().err
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_a_file_without_rows_is_no_success(name: str, work: Path, tiny_model: Path, phantoms: Path) -> None:
    (work / "samples.jsonl").write_text("\n\n")
    with pytest.raises(StllavaError, match=r"samples\.jsonl has no rows"):
        STAGES[name](work, tiny_model, phantoms / "images", phantoms / "conversations.jsonl")


def test_answer_says_when_nothing_was_asked(work: Path, tiny_model: Path, phantoms: Path) -> None:
    none = finished(work / "none", "questions", [])
    told = r"came of the 0 questions of \S*none; expected at least one\. Ask more: this ask got no question\."
    with pytest.raises(NothingLeftError, match=told):
        answer(AnswerOptions(), policy=tiny_model, questions=none, root=phantoms / "images", to=work / "to")


def test_answer_says_when_the_expert_could_judge_nothing(work: Path, tiny_model: Path, phantoms: Path) -> None:
    told = r"the 4 questions of .*: 4 × no verdict by oracle; for example: 'is it\?' about unlab.*an expert that can judge"
    with pytest.raises(NothingLeftError, match=told):
        answer(
            AnswerOptions(),
            policy=tiny_model,
            questions=work / "questions",
            root=phantoms / "images",
            to=work / "to",
            expert="oracle",
            truth=phantoms / "truths.jsonl",
        )


@pytest.mark.parametrize(
    ("scores", "cause", "told"),
    [
        ((0.5, 0.5), None, r"3 × tie; for example: '0\?' with scores \(0\.5, 0\.5\).*mode pairwise"),
        ((0.5, 0.4), None, r"3 × margin too small.*Lower the margin"),
        (None, "abstained", r"3 × abstained.*choose another one"),
    ],
    ids=["ties", "small margins", "no verdicts"],
)
def test_judgments_that_make_no_pair_are_no_success(
    scores: tuple[float, float] | None, cause: VerdictCause | None, told: str, tmp_path: Path
) -> None:
    given = [
        Answers(
            id=f"a{n}", question_id="q", images=("x",), question=f"{n}?", completions=("yes", "no"), policy="p", sampling=HOW
        )
        for n in range(3)
    ]
    said = [
        Judgment(id=f"j{n}", answers_id=f"a{n}", scores=scores, cause=cause, reason="", expert="e", prompt_hash="h")
        for n in range(3)
    ]
    answers, judgments = finished(tmp_path / "a", "answers", given), finished(tmp_path / "j", "judgments", said)
    with pytest.raises(NothingLeftError, match=f"came of 3 judgments: {told}"):
        pair(PairOptions(), answers=answers, judgments=judgments, to=tmp_path / "to")


def copies(to: Path, *, bad: Callable[[int], bool], mute: bool = False, max_bad: float = FIVE_PERCENT) -> list[int]:
    """Copy 400 images in chunks of 20, of which some cannot be used; returns the first number of each chunk worked on."""
    worked: list[int] = []
    stage = Stage("copy", to, PairOptions(), inputs={}, existing="resume")

    def work(chunk: Sequence[Image]) -> tuple[list[Image], Dropped]:
        worked.append(int(chunk[0].id))
        dropped, kept = Dropped(), []
        for image in chunk:
            if bad(int(image.id)):
                dropped.fault(ItemError("missing", f"{image.path} does not exist"), of="image")
            elif mute:
                dropped.drop("not a question", "'uh'")
            else:
                kept.append(image)
        return kept, dropped

    images = [Image(id=str(n), path=f"{n}.png") for n in range(400)]
    try:
        made = stage.map_chunks(
            images, PlainWork(work), record_type=Image, size=20, unit="images", max_bad=max_bad, remedy="Speak."
        )
    finally:
        (to / "worked.json").write_text(json.dumps(worked))
    stage.write_records("images", made.records)
    stage.finish(counts_in=400, counts_out=made.count, dropped=made.dropped)
    return worked


def test_a_stage_ends_as_soon_as_more_than_the_share_cannot_be_used_and_goes_on_once_that_is_put_right(tmp_path: Path) -> None:
    with pytest.raises(
        StllavaError, match=r"27 of the first 140 of 400 images.*61\.png does not exist.*at most 5% \(max_bad\)"
    ):
        copies(tmp_path / "a", bad=lambda n: n > 60 and n % 3 == 1)
    assert json.loads((tmp_path / "a" / "worked.json").read_text()) == [0, 20, 40, 60, 80, 100, 120]
    (tmp_path / "a" / "worked.json").unlink()
    # What was whole is kept; what held a fault is looked at again.
    assert copies(tmp_path / "a", bad=lambda _: False) == list(range(60, 400, 20))
    copies(tmp_path / "b", bad=lambda _: False)
    assert (tmp_path / "a" / "images.jsonl").read_bytes() == (tmp_path / "b" / "images.jsonl").read_bytes()


def test_a_dozen_unusable_items_are_counted_and_let_pass_and_so_is_the_share(tmp_path: Path) -> None:
    copies(tmp_path / "a", bad=lambda n: n < LET_PASS, max_bad=0)
    assert read_manifest(tmp_path / "a").dropped == {"image missing": LET_PASS}
    copies(tmp_path / "b", bad=lambda n: n < 20)
    with pytest.raises(StllavaError, match="13 of the first 20 of 400 images"):
        copies(tmp_path / "c", bad=lambda n: n < LET_PASS + 1, max_bad=0)


def test_a_policy_that_says_nothing_of_use_is_not_asked_for_ever(tmp_path: Path) -> None:
    with pytest.raises(
        NothingLeftError, match=r"the first 120 of 400 images: 120 × not a question; for example: 'uh'.*Speak\."
    ):
        copies(tmp_path, bad=lambda _: False, mute=True)
    assert HOPELESS == 120
    assert len(json.loads((tmp_path / "worked.json").read_text())) == 6
    assert not (tmp_path / PARTS).exists()


def test_faults_of_a_few_rows_are_told_when_sft_has_learned_from_the_others(
    work: Path, tiny_model: Path, phantoms: Path
) -> None:
    shutil.copytree(phantoms / "images", work / "images")
    (work / "images" / "labelled" / "00001.png").unlink()
    options = SftOptions(save_steps=0, batch_size=2, max_bad=0.2)
    made = sft(
        options, model=str(tiny_model), conversations=phantoms / "conversations.jsonl", images=work / "images", to=work / "to"
    ).manifest
    assert made.counts_in == made.counts_out + made.dropped["missing"]
    assert made.dropped["missing"] > 0
