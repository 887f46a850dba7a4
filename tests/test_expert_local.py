"""A model in this process as an expert: the same reply_log, nothing sent."""

from pathlib import Path

import pytest

from conftest import TINY
from helpers.judging import answers_of, write_answers
from stllava.config import JudgeOptions, LocalExpertOptions
from stllava.errors import NothingLeftError, StllavaError
from stllava.experts.backends.local_model import LocalBackend
from stllava.experts.model.reply_log import Exchange, cut_off
from stllava.model.small import build_small
from stllava.stages.judge import judge
from stllava.store import AUDIT, EXCHANGES, read_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """An untrained LLaVA whose context holds a judge's prompt in its short tokens."""
    folder = tmp_path_factory.mktemp("expert") / "model"
    build_small(TINY.model_copy(update={"context": 8192}), conversations=phantoms / "conversations.jsonl", to=folder, seed=3)
    return folder


def test_a_local_model_is_asked_once_in_both_orders(tmp_path: Path, phantoms: Path, model: Path) -> None:
    images = sorted(path.name for path in (phantoms / "images" / "test").iterdir())
    given = [answers_of("what is seen?", ("a nodule", "a mass"), image=f"test/{name}") for name in images]
    given.append(answers_of("what is seen?", ("a nodule", "a mass"), image="gone.png"))
    folder, to = write_answers(tmp_path / "answers", given), tmp_path / "out"
    local = LocalExpertOptions(model=str(model), max_new_tokens=6)
    options = JudgeOptions(expert="local", mode="pairwise", local=local, max_failed=0.5)

    def judged() -> None:
        with pytest.raises(NothingLeftError, match=rf"{len(images)} times no verdict could be read"):
            judge(options, answers=folder, root=phantoms / "images", to=to)

    judged()
    reply_log = to / EXCHANGES / "expert.jsonl"
    exchanges = read_jsonl(reply_log, Exchange)[: 2 * len(images)]
    assert {one.order for one in exchanges} == {(0, 1), (1, 0)}
    cut = [one.subject for one in exchanges if one.body is not None and cut_off(one.body.encode())]
    assert cut, "six tokens end no reply of an untrained model"
    missing = [one for one in read_jsonl(reply_log, Exchange) if one.subject == given[-1].id]
    assert [(one.failure or one.body or "")[:13] for one in missing] == ["image missing"] * 2
    assert not (to / AUDIT).exists()
    before = reply_log.read_bytes()
    judged()
    assert reply_log.read_bytes()[: len(before)] == before
    assert len(reply_log.read_bytes().splitlines()) == len(before.splitlines()) + 2, "only the missing image is asked again"


def test_a_local_expert_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="the local expert has no model"):
        LocalBackend(LocalExpertOptions(), root=tmp_path)
