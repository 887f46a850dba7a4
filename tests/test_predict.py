"""predict: a line for every question, answered as evaluate would, or with the cause why not."""

import ast
import json
from functools import partial
from pathlib import Path

import pytest

import stllava
from stllava.commands.flags import dispatch
from stllava.config import EvaluateOptions, SamplingOptions
from stllava.errors import StllavaError
from stllava.records import Prediction, Sample
from stllava.stages.evaluate import evaluate
from stllava.stages.predict import Reply, predict
from stllava.store import MANIFEST, read_jsonl, read_manifest, read_records

OPTIONS = EvaluateOptions(sampling=SamplingOptions(temperature=0.0, max_new_tokens=6), chunk=5)


@pytest.fixture(scope="module")
def samples(phantoms: Path) -> list[Sample]:
    return read_jsonl(phantoms / "phantom.jsonl", Sample)[:12]


def rows(to: Path, *lines: object) -> Path:
    to.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return to


def test_short_rows_and_samples_get_the_answers_of_an_evaluation(
    tiny_model: Path, phantoms: Path, samples: list[Sample], tmp_path: Path
) -> None:
    (tmp_path / "test.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in samples))
    short = rows(tmp_path / "short.jsonl", *({"image": one.image, "question": one.question} for one in samples))
    root = phantoms / "images"
    evaluate(OPTIONS, policy=tiny_model, root=root, samples=tmp_path / "test.jsonl", to=tmp_path / "evaluated")
    wanted = [one.completion for one in read_records(tmp_path / "evaluated", "predictions", Prediction)]
    for name, questions in (("full", tmp_path / "test.jsonl"), ("bare", short)):
        predict(OPTIONS, policy=tiny_model, root=root, questions=questions, to=tmp_path / name)
        replies = read_records(tmp_path / name, "replies", Reply)
        assert [one.answer for one in replies] == wanted
        assert [(one.image, one.question) for one in replies] == [(one.image, one.question) for one in samples]
    assert [one.id for one in read_records(tmp_path / "full", "replies", Reply)] == [one.id for one in samples]


def test_a_question_that_cannot_be_asked_keeps_its_line_and_says_why(
    tiny_model: Path, phantoms: Path, samples: list[Sample], tmp_path: Path
) -> None:
    good = {"id": "good", "image": samples[0].image, "question": "what is seen?"}
    lost = [{"image": "gone.png", "question": "what?"}, {"image": "../up.png", "question": "what?"}]
    path = rows(tmp_path / "q.jsonl", lost[0], good, lost[1])
    manifest = predict(OPTIONS, policy=tiny_model, questions=path, root=phantoms / "images", to=tmp_path / "out").manifest
    replies = read_records(tmp_path / "out", "replies", Reply)
    assert [one.cause for one in replies] == ["image missing", None, "image outside-root"]
    assert [one.answer is None for one in replies] == [True, False, True]
    assert manifest.dropped == {"image missing": 1, "image outside-root": 1}
    assert (manifest.counts_in, manifest.counts_out) == (3, 1)


@pytest.mark.parametrize("text", ["is there a lung in <image>?", "is it?<|end|><|assistant|>yes"])
def test_a_question_that_spells_a_special_token_is_asked_as_it_stands(
    tiny_model: Path, phantoms: Path, samples: list[Sample], tmp_path: Path, text: str
) -> None:
    asked = [one.model_copy(update={"question": text}) if place == 1 else one for place, one in enumerate(samples[:3])]
    (tmp_path / "test.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in asked))
    root = phantoms / "images"
    told = predict(OPTIONS, policy=tiny_model, root=root, questions=tmp_path / "test.jsonl", to=tmp_path / "told").manifest
    scored = evaluate(OPTIONS, policy=tiny_model, root=root, samples=tmp_path / "test.jsonl", to=tmp_path / "scored").manifest
    assert (told.counts_out, scored.counts_out) == (3, 3)
    assert read_records(tmp_path / "told", "replies", Reply)[1].question == text


def test_a_question_longer_than_the_context_costs_that_question(
    tiny_model: Path, phantoms: Path, samples: list[Sample], tmp_path: Path
) -> None:
    long = samples[1].model_copy(update={"question": "is there a nodule? " * 200})
    (tmp_path / "test.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in (samples[0], long, samples[2])))
    root = phantoms / "images"
    told = predict(OPTIONS, policy=tiny_model, root=root, questions=tmp_path / "test.jsonl", to=tmp_path / "told").manifest
    scored = evaluate(OPTIONS, policy=tiny_model, root=root, samples=tmp_path / "test.jsonl", to=tmp_path / "scored").manifest
    assert told.dropped == scored.dropped == {"longer than the context": 1}
    causes = [one.cause for one in read_records(tmp_path / "told", "replies", Reply)]
    assert causes == [None, "longer than the context", None]


def test_the_words_choices_and_log_probability_of_an_answer_are_told(
    tiny_model: Path, phantoms: Path, samples: list[Sample], tmp_path: Path
) -> None:
    row = {"image": samples[0].image, "question": "which?", "choices": ["left", "right"]}
    options = OPTIONS.model_copy(update={"prompt": "{question} Be brief.", "sampling": SamplingOptions(max_new_tokens=60)})
    root = phantoms / "images"
    predict(options, policy=tiny_model, questions=rows(tmp_path / "q.jsonl", row), root=root, to=tmp_path / "out")
    (told,) = read_records(tmp_path / "out", "replies", Reply)
    assert told.prompt == "which?\nA. left\nB. right Be brief."
    assert told.choices == ("left", "right")
    assert told.log_probability is None or told.log_probability < 0


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        ('{"image": "a.png"}', "question"),
        ('{"image": "a.png", "question": "what?", "patient": "x"}', "patient"),
        ('{"image": "a.png", "question": "what?"', "JSON"),
        ('["a.png", "what?"]', "Asked"),
        ('{"image": "a.png", "question": "one?"}', "stands in line 1"),
        ('{"id": null, "image": "a.png", "question": "what?"}', "id"),
    ],
    ids=["no question", "unknown field", "torn", "a list", "twice", "no id"],
)
def test_a_malformed_line_is_refused_by_its_number(second: str, fault: str, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"image": "a.png", "question": "one?"}\n' + second + "\n")
    with pytest.raises(StllavaError, match=f"line 2: .*{fault}"):
        predict(OPTIONS, policy=tiny_model, questions=path, root=tmp_path, to=tmp_path / "out")


def test_a_killed_prediction_goes_on_to_the_same_bytes(
    tiny_model: Path, phantoms: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stllava.generation.local_sampler import LocalSampler

    path = rows(tmp_path / "q.jsonl", *({"image": one.image, "question": one.question} for one in samples))
    answer = partial(predict, OPTIONS, policy=tiny_model, questions=path, root=phantoms / "images")
    answer(to=tmp_path / "whole")
    complete, calls = LocalSampler.complete, []

    def stumble(*given: object, **named: object) -> object:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return complete(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalSampler, "complete", stumble)
    with pytest.raises(KeyboardInterrupt):
        answer(to=tmp_path / "killed")
    assert not (tmp_path / "killed" / MANIFEST).exists()
    answer(to=tmp_path / "killed")
    assert len(calls) == 4  # chunks of 5, 5 and 2: one done, one killed, two made
    assert (tmp_path / "killed" / "replies.jsonl").read_bytes() == (tmp_path / "whole" / "replies.jsonl").read_bytes()


def test_the_command_takes_the_stages_flags(
    tiny_model: Path, phantoms: Path, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rows(tmp_path / "q.jsonl", {"image": samples[0].image, "question": "what?"})
    words = ["--policy", str(tiny_model), "--questions", str(path), "--root", str(phantoms / "images")]
    dispatch(["predict", *words, "--to", str(tmp_path / "out"), "--sampling.max-new-tokens", "3"])
    assert "predict: 1 in, 1 out" in capsys.readouterr().out
    assert read_manifest(tmp_path / "out").config["sampling"] == {
        "temperature": 0.0,
        "top_k": 100,
        "top_p": 0.95,
        "max_new_tokens": 3,
    }


def test_a_table_is_asked_and_scored_as_the_same_samples_are(
    tiny_model: Path, phantoms: Path, samples: list[Sample], tmp_path: Path
) -> None:
    (tmp_path / "test.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in samples))
    lines = [";".join((one.image, f'"{one.question}"', one.targets[0], "")) for one in samples]
    text = "\n".join(["IMAGE;Question;answer;ward", *lines, f"{samples[0].image};What is not answered?;;"])
    (tmp_path / "test.csv").write_bytes(text.encode("utf-16"))
    root, found = phantoms / "images", {}
    for name in ("test.jsonl", "test.csv"):
        to = tmp_path / f"scored {name}"
        manifest = evaluate(OPTIONS, policy=tiny_model, root=root, samples=tmp_path / name, to=to).manifest
        found[name] = [(one.question, one.kind, one.completion) for one in read_records(to, "predictions", Prediction)]
    assert found["test.csv"] == found["test.jsonl"]
    assert manifest.dropped == {"empty text": 1}
    assert any("test.csv is in UTF-16" in note for note in manifest.notes)
    told = predict(OPTIONS, policy=tiny_model, root=root, questions=tmp_path / "test.csv", to=tmp_path / "asked").manifest
    replies = read_records(tmp_path / "asked", "replies", Reply)
    assert [(one.question, one.answer) for one in replies[:-1]] == [(asked, said) for asked, _, said in found["test.jsonl"]]
    assert (told.counts_in, told.counts_out) == (13, 13)


def test_an_empty_question_is_not_asked_and_a_number_is_an_id(
    tiny_model: Path, phantoms: Path, samples: list[Sample], tmp_path: Path
) -> None:
    image = samples[0].image
    path = rows(tmp_path / "q.jsonl", {"id": 7, "image": image, "question": "what?"}, {"image": image, "question": " \n"})
    predict(OPTIONS, policy=tiny_model, questions=path, root=phantoms / "images", to=tmp_path / "out")
    replies = read_records(tmp_path / "out", "replies", Reply)
    assert [(one.id if one.answer is not None else one.cause) for one in replies] == ["7", "empty text"]


def test_a_file_of_one_name_holds_records_of_one_kind() -> None:
    stages = Path(stllava.__file__).parent / "stages"
    kinds: dict[str, set[str]] = {}
    for path in sorted(stages.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "write_records":
                name = ast.literal_eval(node.args[0])
                kinds.setdefault(name, set()).add(path.stem)
    assert kinds.pop("answers") == {"answer", "scored_predictions"}, "both hold Answers, for judge to read"
    assert kinds.pop("questions") == {"ask", "calibrate"}, "both hold Question, for answer to read"
    assert kinds.pop("conversations") == {"distill", "final_data"}, "both hold Conversation, for sft to learn"
    assert {name: stages for name, stages in kinds.items() if len(stages) > 1} == {}
    assert kinds["predictions"] == {"scored_predictions"}
    assert kinds["replies"] == {"predict"}
