"""Records that are gone through instead of held: what comes of them is the same, and memory does not grow with them."""

import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from stllava.dropped import Dropped
from stllava.metrics.score import METRICS, measured, readings, score
from stllava.metrics.stats import bootstrap_interval
from stllava.records import Prediction, QuestionKind, Score
from stllava.store import ChunkRecords, FinishedChunk, write_chunk

WORDS = ("effusion", "nodule", "fracture", "mass", "no", "yes")


def predictions(count: int, *, seed: int = 0) -> Iterator[Prediction]:
    """Answers about images whose names come up in no order."""
    draw = random.Random(seed)
    for number in range(count):
        kind: QuestionKind = draw.choice(["open", "closed"])
        choices = ("mass", "nodule") if kind == "closed" and draw.random() < 0.5 else ()
        yield Prediction(
            id=f"p{number}",
            sample_id=f"s{number}",
            image=f"images/{draw.randrange(count):05d}.png",
            question="what is seen in this picture?",
            targets=("nodule",) if kind == "open" or choices else ("yes",),
            kind=kind,
            choices=choices,
            completion=draw.choice(WORDS),
            policy="p",
        )


def held_scores(rows: Sequence[Prediction]) -> list[Score]:
    """Every metric's score from lists of all its rows, as the definition says."""
    found = []
    for metric, definition in METRICS.items():
        part = measured(rows, metric)
        read = readings(part, metric)
        value, low, high = bootstrap_interval([reading or 0.0 for reading in read], [row.image for row in part])
        found.append(
            Score(
                policy="p",
                benchmark="b",
                metric=metric,
                rule=definition.rule,
                value=value,
                low=low,
                high=high,
                n=len(part),
                abstained=read.count(None),
            )
        )
    return found


def grown(work: Callable[[int], object], few: int, many: int) -> float:
    """Bytes by which the peak of Python's memory grows for one more record."""
    peaks = []
    work(few)  # What is kept for good, such as a cache of words, is there before.
    for count in (few, many):
        tracemalloc.start()
        work(count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (many - few)


def test_scores_of_streamed_predictions_are_those_of_held_ones_to_the_last_bit() -> None:
    assert score(predictions(300), policy="p", benchmark="b") == held_scores(list(predictions(300)))


def test_scoring_holds_numbers_of_each_prediction_and_no_prediction() -> None:
    streamed = grown(lambda count: score(predictions(count), policy="p", benchmark="b"), 400, 1200)
    held = grown(lambda count: score(list(predictions(count)), policy="p", benchmark="b"), 400, 1200)
    assert streamed < 500, f"{streamed:.0f} bytes a prediction"
    assert held > 2 * streamed, f"held, a prediction takes {held:.0f} bytes"


@pytest.fixture
def chunks(tmp_path: Path) -> list[Path]:
    rows = list(predictions(40))
    paths = [tmp_path / f"{start}.jsonl" for start in range(0, 40, 8)]
    for place, path in enumerate(paths):
        write_chunk(path, FinishedChunk(rows[place * 8 : place * 8 + 8], Dropped()))
    return paths


def test_chunks_are_read_in_any_order_as_if_they_were_sorted_in_memory(chunks: list[Path]) -> None:
    records = ChunkRecords(chunks, Prediction)

    def rank(row: Prediction) -> int:
        return int(row.sample_id[1:]) * 7 % 10

    ordered = records.in_order(rank)
    wanted = sorted(records, key=rank)
    assert [list(ordered), list(ordered)] == [wanted, wanted]
    assert (len(ordered), ordered[13], ordered[-1], list(ordered[3:30:9])) == (40, wanted[13], wanted[-1], wanted[3:30:9])


def test_no_chunk_has_an_order_too(tmp_path: Path) -> None:
    none: Iterable[Prediction] = ChunkRecords([], Prediction).in_order(lambda row: 0)
    assert list(none) == []
