"""Records that are gone through instead of held: what comes of them is the same, and memory does not grow with them."""

import gc
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from stllava.config import PairOptions
from stllava.data.benchmarks.own import read_samples
from stllava.dropped import Dropped
from stllava.metrics.score import METRICS, compare, measured, readings, score, values
from stllava.metrics.stats import bootstrap_interval, detectable_difference, paired_difference, permutation_p
from stllava.model.load import load_policy
from stllava.records import Lineage, Message, Prediction, Preference, QuestionKind, Sample, Score
from stllava.report.disagreements import disagreements
from stllava.report.record_places import RecordPlaces, by_content
from stllava.stages.dpo import latest
from stllava.store import ChunkRecords, FinishedChunk, Stage, read_jsonl, to_jsonl, write_chunk
from stllava.training import preference_dataset
from stllava.training.preference_dataset import PreferenceDataset
from stllava.training.references import measure_reference

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
    work(many)  # What is kept for good, such as a cache of words, is there before.
    for count in (few, many):
        gc.collect()
        tracemalloc.start()
        work(count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (many - few)


def test_scores_of_streamed_predictions_are_those_of_held_ones_to_the_last_bit() -> None:
    assert score(predictions(300), policy="p", benchmark="b") == held_scores(list(predictions(300)))


@pytest.mark.slow
def test_scoring_holds_numbers_of_each_prediction_and_no_prediction() -> None:
    streamed = grown(lambda count: score(predictions(count), policy="p", benchmark="b"), 400, 1200)
    held = grown(lambda count: score(list(predictions(count)), policy="p", benchmark="b"), 400, 1200)
    assert streamed < 500, f"{streamed:.0f} bytes a prediction"
    assert held > 2 * streamed, f"held, a prediction takes {held:.0f} bytes"


@pytest.mark.slow
def test_samples_are_held_once_while_they_are_read(tmp_path: Path) -> None:
    paths = {count: tmp_path / f"{count}.jsonl" for count in (100, 400)}
    for count, path in paths.items():
        rows = [
            Sample(id=f"s{number}", image=f"{number}.png", question="Is it?", targets=("yes",), kind="closed", split="test")
            for number in range(count)
        ]
        path.write_text(to_jsonl(rows))
    read = grown(lambda count: read_samples(paths[count]), 100, 400)
    held = grown(lambda count: read_jsonl(paths[count], Sample), 100, 400)
    assert read < 1.1 * held, f"{read:.0f} bytes a sample, which takes {held:.0f}"


def test_differences_of_streamed_predictions_are_those_of_held_ones_to_the_last_bit() -> None:
    mine, theirs = list(predictions(300)), list(predictions(300, seed=0))[::-2]
    answered = {row.sample_id: row for row in theirs}
    found = {one.metric: one for one in compare(iter(mine), iter(theirs), policy="a", against="b", benchmark="c")}
    assert set(found) == set(METRICS)
    for metric, one in found.items():
        rows = [row for row in measured(mine, metric) if row.sample_id in answered]
        both = values(rows, metric), values([answered[row.sample_id] for row in rows], metric)
        images = [row.image for row in rows]
        assert (one.value, one.low, one.high) == paired_difference(*both, images)
        assert (one.p, one.detectable) == (permutation_p(*both, images), detectable_difference(*both, images))


@pytest.mark.slow
def test_comparing_and_looking_for_disagreements_holds_no_prediction() -> None:
    def look(count: int) -> None:
        compare(predictions(count), predictions(count), policy="a", against="b", benchmark="c")
        disagreements(predictions(count))

    assert grown(look, 400, 1200) < 600 < grown(lambda count: list(predictions(count)), 400, 1200)


def test_a_record_is_found_again_by_its_name() -> None:
    names = [f"name {number % 30}" for number in range(40)]
    places = RecordPlaces(names)
    assert [places.place(name) for name in names] == [names.index(name) for name in names]
    assert (places.place("another"), places.different) == (None, 30)
    assert RecordPlaces([]).place("name 0") is None
    assert by_content(["0b", "0a", "ff", "0a"]).tolist() == [1, 3, 0, 2]


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


def preferences(count: int, *, votes: bool = False) -> Iterator[Preference]:
    """Pairs of four questions about each of a tenth as many images in no order, some of them of the policy's own vote."""
    draw = random.Random(count)
    for number in range(count):
        yield Preference(
            id=f"pair {number} of {count}",
            images=(f"{draw.randrange(-(-count // 10)):05d}.png",),
            prompt=(Message(role="user", content=f"Question {draw.randrange(4)}?"),),
            chosen=draw.choice(WORDS),
            rejected="nothing of that kind",
            margin=1.0,
            lineage=Lineage(question_id="q", answers_id="a", judgment_id="j", own_vote=votes and draw.random() < 0.5),
        )


@pytest.fixture
def images(phantoms: Path, tmp_path: Path) -> Path:
    """An image root with many pictures, all alike."""
    root = tmp_path / "images"
    root.mkdir()
    for number in range(24):
        shutil.copy(phantoms / "images/unlabelled/00000.png", root / f"{number:05d}.png")
    return root


def write_pairs(folder: Path, rows: Iterable[Preference]) -> Path:
    """A finished stage of these pairs."""
    stage = Stage("pair", folder, PairOptions(), inputs={}, existing="resume")
    stage.write_records("preferences", rows)
    stage.finish(counts_in=1, counts_out=1)
    return folder


def held_latest(rounds: Sequence[Sequence[Preference]]) -> list[Preference]:
    """What `latest` says, from lists of all pairs."""

    def question(pair: Preference) -> tuple[tuple[str, ...], str]:
        return pair.images, pair.prompt[-1].content

    settled = {question(pair) for rows in rounds for pair in rows if not pair.lineage.own_vote}
    known: dict[tuple[tuple[str, ...], str], list[Preference]] = {}
    for rows in rounds:
        fresh: dict[tuple[tuple[str, ...], str], list[Preference]] = {}
        for pair in rows:
            if not pair.lineage.own_vote or question(pair) not in settled:
                fresh.setdefault(question(pair), []).append(pair)
        known |= fresh
    return [pair for pairs in known.values() for pair in pairs]


@pytest.mark.parametrize("votes", [False, True], ids=["verdicts", "verdicts and votes"])
def test_the_pairs_of_several_rounds_are_chosen_on_disk_as_they_would_be_in_memory(votes: bool, tmp_path: Path) -> None:
    rounds = [list(preferences(count, votes=votes)) for count in (9, 4, 7)]
    folders = [write_pairs(tmp_path / str(number), rows) for number, rows in enumerate(rounds)]
    for part in (1, 2, 3):
        assert list(latest(folders[:part])) == held_latest(rounds[:part])


@pytest.mark.parametrize("image_conditional", [False, True])
def test_trees_built_when_asked_for_are_those_that_are_held(
    image_conditional: bool, tiny_model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(tiny_model)
    folder = write_pairs(tmp_path / "pair", preferences(40))

    def dataset(given: Sequence[Preference]) -> PreferenceDataset:
        return PreferenceDataset(policy, given, images=images, max_tokens=300, image_conditional=image_conditional)

    held = dataset(latest([folder])[:])
    monkeypatch.setattr(preference_dataset, "TREES_KEPT", 1)
    streamed = dataset(latest([folder]))
    assert len(streamed) == len(held) > 3
    for index in (*range(len(held)), 0, -1):
        assert streamed.trees[index] == held.trees[index]
        assert streamed.pairs[index] == held.pairs[index]
        assert streamed.preferences[index] == held.preferences[index]
        assert streamed.altered[index] == held.altered[index]
    measured = [measure_reference(one, policy, weights="w") for one in (streamed, held)]
    assert measured[0] == measured[1]
    assert list(measured[0].records(streamed)) == list(measured[1].records(held))


@pytest.mark.slow
def test_what_dpo_learns_from_holds_numbers_of_each_pair(
    tiny_model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preference_dataset, "TREES_KEPT", 1)
    policy = load_policy(tiny_model)
    folders = {count: write_pairs(tmp_path / str(count), preferences(count)) for count in (40, 240)}

    def learn_from(given: Sequence[Preference]) -> PreferenceDataset:
        dataset = PreferenceDataset(policy, given, images=images, max_tokens=300)
        assert sum(map(len, dataset.preferences)) == len(given)
        return dataset

    streamed = grown(lambda count: learn_from(latest([folders[count]])), 40, 240)
    held = grown(lambda count: learn_from(list(latest([folders[count]]))), 40, 240)
    assert streamed < 500 < held, f"{streamed:.0f} bytes a pair; held, it takes {held:.0f}"
