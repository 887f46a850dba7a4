"""Whether a policy gained by looking: what black images gain is taken off, and nothing is said without an interval."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stllava.config import EvaluateOptions
from stllava.data.sources import PhantomData
from stllava.metrics.looking import Gained, gain_by_looking
from stllava.metrics.score import score
from stllava.pipeline import CHOOSING, Loop
from stllava.recipe import RunOptions
from stllava.records import Prediction
from stllava.rundir import BLIND, RunDir
from stllava.store import Stage


def predictions(right: Sequence[bool]) -> list[Prediction]:
    """Three questions an image, one of them open."""
    return [
        Prediction(
            id=f"p{number}",
            sample_id=str(number),
            image=f"{number // 3}.png",
            question="?",
            targets=("left",) if number % 3 == 0 else ("yes",),
            kind="open" if number % 3 == 0 else "closed",
            completion=("left" if number % 3 == 0 else "yes") if good else ("right" if number % 3 == 0 else "no"),
            policy="p",
        )
        for number, good in enumerate(right)
    ]


def shares(*rates: float, count: int = 240, seed: int = 0) -> list[list[Prediction]]:
    draw = np.random.default_rng(seed)
    return [predictions([bool(one) for one in draw.random(count) < rate]) for rate in rates]


def mean_of_metrics(rows: Sequence[Prediction]) -> float:
    found = [one.value for one in score(rows, policy="x", benchmark="b") if one.metric in CHOOSING]
    return sum(found) / len(found)


def test_it_is_the_seeing_gain_less_the_blind_one_as_rounds_are_compared() -> None:
    before, after, blind_before, blind_after = shares(0.4, 0.7, 0.4, 0.5)
    found = gain_by_looking(Gained(before, after), Gained(blind_before, blind_after), metrics=CHOOSING)
    gains = [mean_of_metrics(new) - mean_of_metrics(old) for old, new in ((before, after), (blind_before, blind_after))]
    assert found.value == pytest.approx(gains[0] - gains[1])
    assert found.low < found.value < found.high
    assert found == gain_by_looking(Gained(before, after), Gained(blind_before, blind_after), metrics=CHOOSING)


def test_its_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(60):
        before, after, blind_before, blind_after = shares(0.4, 0.6, 0.4, 0.5, count=180, seed=seed)
        found = gain_by_looking(Gained(before, after), Gained(blind_before, blind_after), metrics=CHOOSING)
        held += found.low <= 0.1 <= found.high
    assert 53 <= held <= 60


@pytest.mark.parametrize(
    ("blind", "told"), [((0.4, 0.4), False), ((0.4, 0.8), True), ((0.4, 0.75), True)], ids=["none", "as much", "nearly as much"]
)
def test_it_is_said_only_where_the_interval_does_not_lie_above_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blind: tuple[float, float], told: bool
) -> None:
    names = ("sft", "round-1", f"{BLIND}sft", f"{BLIND}round-1")
    folder = RunDir(tmp_path)
    made = dict(zip(names, shares(0.4, 0.8, *blind), strict=True))
    for name, rows in made.items():
        stage = Stage("evaluate", folder.evaluation(name, "validation"), EvaluateOptions(), inputs={}, existing="resume")
        stage.write_records("predictions", rows)
        stage.finish(counts_in=len(rows), counts_out=len(rows))
    monkeypatch.setattr(Loop, "value", lambda _, name, data, blank=False: mean_of_metrics(made[BLIND * blank + name]))
    loop = Loop(RunOptions(name="x", data=PhantomData()), folder)
    data = type("Data", (), {"validation": Path("validation.jsonl")})()
    loop.tell_blind_gain("round-1", "sft", data, gain=mean_of_metrics(made["round-1"]) - mean_of_metrics(made["sft"]))
    assert bool(loop.sentences) == told
    for sentence in loop.sentences:
        assert "95 % interval" in sentence
        assert "is not shown to have gained by looking" in sentence
    loop.sentences.clear()
    loop.tell_blind_gain("round-1", "sft", data, gain=-0.1)
    assert not loop.sentences
