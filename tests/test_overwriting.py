"""What is to be written never removes what it is made from, nor what another stage made, whatever `existing` says."""

import shutil
from pathlib import Path

import pytest

from stllava.config import AnswerOptions, AskOptions, GroupRates, SftOptions
from stllava.errors import ConflictError, StllavaError
from stllava.records import Question, Sampling
from stllava.stages.answer import answer
from stllava.stages.export import export
from stllava.stages.sft import sft
from stllava.store import Stage, file_hash

HOW = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=4, seed=0)


def files(folder: Path) -> dict[str, str]:
    return {path.name: file_hash(path) for path in folder.iterdir() if path.name != "lock"}


def questions(folder: Path) -> Path:
    stage = Stage("ask", folder, AskOptions(), inputs={}, existing="resume")
    asked = Question(id="a", images=("a.png",), text="Which side?", description="", policy="p", sampling=HOW)
    stage.write_records("questions", [asked])
    stage.finish(counts_in=1, counts_out=1)
    return folder


@pytest.mark.parametrize("existing", ["resume", "replace"])
def test_a_policy_is_not_trained_over_itself(tiny_model: Path, phantoms: Path, tmp_path: Path, existing: str) -> None:
    """`sft --model M --to M --existing replace` removed the model, and only then found that there was none."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    before = files(model)
    with pytest.raises(StllavaError, match="to be read and to be written"):
        sft(
            SftOptions(epochs=1, learning_rate=GroupRates()),
            model=str(model),
            conversations=phantoms / "conversations.jsonl",
            images=phantoms / "images",
            to=model,
            existing=existing,  # type: ignore[arg-type]
        )
    with pytest.raises(StllavaError, match="to be read and to be written"):
        export(model, to=model / ".." / model.name, existing="replace")
    assert files(model) == before


def test_a_file_in_the_folder_that_is_replaced_is_not_read_from_there(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    rows = Path(shutil.copy(phantoms / "conversations.jsonl", model / "rows.jsonl"))
    with pytest.raises(StllavaError, match=r"rows\.jsonl is to be read and lies in"):
        sft(SftOptions(), model=str(tiny_model), conversations=rows, images=phantoms / "images", to=model, existing="replace")
    assert rows.exists()


def test_questions_are_not_replaced_by_their_answers(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    """Answers into the folder of the questions removed the questions; and a slip in a path, any other stage's output."""
    asked = questions(tmp_path / "asked")
    other = questions(tmp_path / "other")
    before = files(asked), files(other)
    with pytest.raises(StllavaError, match="to be read and to be written"):
        answer(AnswerOptions(), policy=tiny_model, questions=asked, root=phantoms, to=asked, existing="replace")
    with pytest.raises(ConflictError, match="output of the stage ask, not of answer"):
        answer(AnswerOptions(), policy=tiny_model, questions=asked, root=phantoms, to=other, existing="replace")
    assert (files(asked), files(other)) == before
