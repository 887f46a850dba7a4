"""The README's recipe and its loop by hand, word by word, from a folder that is not the checkout's."""

import json
import random
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from conftest import TINY, teach
from stllava.cli import main
from stllava.records import Outcome, Sample, Score, content_id
from stllava.store import read_manifest, read_records, to_jsonl, write_whole

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BY_HAND = ("sft", "ask", "answer", "judge", "pair", "dpo", "evaluate")
TINY_FLAGS = [word for name, value in TINY.model_dump().items() for word in (f"--small.{name.replace('_', '-')}", str(value))]
"""The small model is built in this shape here, to be taught in seconds."""


def blocks() -> dict[str, list[str]]:
    """The lines of the README's blocks by the language that they name."""
    found: dict[str, list[str]] = {}
    inside: str | None = None
    for line in README.splitlines():
        if line.startswith("```"):
            inside = line.removeprefix("```") if inside is None else None
        elif inside is not None:
            found.setdefault(inside, []).append(line)
    return found


def commands() -> list[list[str]]:
    """The words behind `stllava` of every command in the README's blocks."""
    lines = [line for language in ("", "sh") for line in blocks().get(language, [])]
    return [shlex.split(line)[1:] for line in lines if line.startswith("stllava ")]


def recipe() -> str:
    """The README's recipe."""
    found = re.search(r"```yaml\n(name: .*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


QUESTIONS = ("is it ct?", "is it left?", "is it large?")


def sample(image: str, question: str, answer: str) -> Sample:
    key = content_id(image, question)
    return Sample(id=key, image=image, question=question, targets=(answer,), kind="closed", split="test")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README's recipe names; what is asked is easily learned, what is right is not."""
    home = tmp_path_factory.mktemp("hospital")
    draw = random.Random(0)
    (home / "images" / "new").mkdir(parents=True)
    facts: dict[str, list[str]] = {}
    for number in range(36):
        name = f"{'new/' if number % 3 == 0 else ''}{number}.png"
        Image.frombytes("L", (32, 32), draw.randbytes(1024)).resize((64, 64)).save(home / "images" / name)
        facts[name] = [draw.choice(["yes", "no"]) for _ in QUESTIONS]
    samples = {name: [sample(name, *pair) for pair in zip(QUESTIONS, said, strict=True)] for name, said in facts.items()}
    new = [one for name, rows in samples.items() if name.startswith("new/") for one in rows]
    others = [rows for name, rows in samples.items() if not name.startswith("new/")]
    write_whole(home / "references.jsonl", to_jsonl(new))
    write_whole(home / "test.jsonl", to_jsonl([one for rows in others[:4] for one in rows]))
    lines = [f"{one.image},{one.question},{one.targets[0]}" for rows in others[4:8] for one in rows]
    write_whole(home / "validation.csv", "\n".join(["image,question,answer", *lines, ""]))
    talks = []
    for rows in others[8:]:
        turns = [("human", "Describe the image."), ("gpt", "an image")]
        turns += [turn for one in rows for turn in (("human", one.question), ("gpt", one.targets[0]))]
        talks.append({"image": rows[0].image, "conversations": [{"from": who, "value": text} for who, text in turns]})
    write_whole(home / "labelled.json", json.dumps(talks))
    teach(home / "labelled.json", home / "images", to=home / "taught").rename(home / "my-vlm")
    return home


@pytest.mark.slow
def test_the_readmes_recipe_runs_as_it_is_written_and_means_the_same_from_another_folder(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(hospital)
    (hospital / "my-recipe.yaml").write_text(recipe(), encoding="utf-8")
    (words,) = (words for words in commands() if words[:1] == ["run"] and words[1] == "my-recipe.yaml")
    main(words)
    shown = capsys.readouterr().out
    outcome = Outcome.model_validate_json((hospital / "runs" / "my-hospital-0" / "outcome.json").read_bytes())
    assert "round-1" in outcome.policies
    assert {score.benchmark for score in outcome.scores} == {"test", "validation"}
    monkeypatch.chdir(tmp_path)
    main(["run", str(hospital / "my-recipe.yaml"), "--to", str(hospital / "runs" / "my-hospital-0")])
    assert capsys.readouterr().out.splitlines()[:-1] == shown.splitlines()[:-1]


@pytest.mark.slow
def test_the_loop_by_hand_runs_as_it_is_written(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hospital)
    chain = [words for words in commands() if words[0] in BY_HAND and any(word.startswith("hand/") for word in words)]
    assert [words[0] for words in chain] == list(BY_HAND)
    for words in chain:
        main([*words, *TINY_FLAGS] if words[0] == "sft" else words)
    assert read_manifest(hospital / "hand" / "pair").counts_out > 0
    assert {one.metric for one in read_records(hospital / "hand" / "scores", "scores", Score)} >= {"closed_accuracy"}


def test_sft_builds_the_small_model_by_itself(phantoms: Path, tmp_path: Path) -> None:
    data = ["--conversations", str(phantoms / "conversations.jsonl"), "--images", str(phantoms / "images")]
    words = ["sft", "--model", "small", *data, "--save-steps", "0", "--to"]
    for to in ("one", "two"):
        main([*words, str(tmp_path / to), *TINY_FLAGS])
    one, two = (read_manifest(tmp_path / to) for to in ("one", "two"))
    assert one.outputs == two.outputs
    main([*words, str(tmp_path / "one"), *TINY_FLAGS])
    assert read_manifest(tmp_path / "one") == one
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path / "one")])
