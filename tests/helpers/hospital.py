"""A hospital's files as README's recipe names them: images, labels, references, and a model that was taught in seconds."""

import json
import random
from pathlib import Path

from PIL import Image

from conftest import teach
from stllava.records import Sample, content_id
from stllava.store import to_jsonl, write_whole

QUESTIONS = ("is it ct?", "is it left?", "is it large?")


def sample(image: str, question: str, answer: str) -> Sample:
    """A closed question about an image."""
    key = content_id(image, question)
    return Sample(id=key, image=image, question=question, targets=(answer,), kind="closed", split="test")


def build_hospital(home: Path) -> None:
    """Write the files into a folder; what is asked is easily learned, what is right is not."""
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
