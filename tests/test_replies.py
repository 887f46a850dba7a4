"""Reading what models say: a table of replies of every shape, and properties of all others."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stllava.experts.replies import FIRST, SECOND, TIE, read_scores, read_verdict

VERDICTS: list[tuple[str, object]] = [
    ("Verdict: 1", FIRST),
    ("Verdict: 2", SECOND),
    ("Verdict: tie", TIE),
    ("Verdict: abstain", "abstained"),
    ("**Verdict:** 2", SECOND),
    ("**Verdict: 2**", SECOND),
    ("## Verdict\n\n**Answer 1**", FIRST),
    ("verdict - answer 2", SECOND),
    ("Final verdict: Answer 1.", FIRST),
    ("The image shows an effusion. Answer 1 misses it.\n\nVerdict: 2", SECOND),
    ("Verdict: 1\n\nOn reflection I was wrong.\n\nVerdict: 2", SECOND),
    ("Winner: Response A", FIRST),
    ("Winner: B", SECOND),
    ("My preference: Answer 2", SECOND),
    ("The better answer is answer 1.", FIRST),
    ("[[A]]", FIRST),
    ("After all, [[B]]", SECOND),
    ("[[C]]", TIE),
    ('{"reason": "it is right", "verdict": "1"}', FIRST),
    ('{"reason": "both", "verdict": "tie"}', TIE),
    ('{"reason": "unreadable", "verdict": "abstain"}', "abstained"),
    ('{"verdict": 2}', SECOND),
    ('{"verdict": null}', "abstained"),
    ('```json\n{"reason": "x", "verdict": "2"}\n```', SECOND),
    ('Here is my assessment:\n```\n{"winner": "A"}\n```\nThanks.', FIRST),
    ('{"reason": "I first thought \\"verdict\\": \\"1\\"", "verdict": "2"}', SECOND),
    ('{"analysis": {"image": "a scan"}, "verdict": "Answer 1"}', FIRST),
    ('{"Verdict": "Answer 2 is better"} ', SECOND),
    ("<think>Verdict: 1? No.</think>Verdict: 2", SECOND),
    ('<think>Answer 1 is better</think>\n\n{"verdict": "2"}', SECOND),
    ("Answer 2 is better because it names the side.", SECOND),
    ("Answer 1 is clearly more accurate.", FIRST),
    ("The second answer is better.", SECOND),
    ("I prefer answer 1.", FIRST),
    ("I would choose Response B", SECOND),
    ("Both answers are equally good.", TIE),
    ("It is a tie.", TIE),
    ("Neither answer is better.", TIE),
    ("1", FIRST),
    ("2.", SECOND),
    ("**B**", SECOND),
    ("Tie", TIE),
    ("8, 7", FIRST),
    ("8 7\n\nAnswer 1 is more complete.", FIRST),
    ("9/10 vs 7/10", FIRST),
    ("Answer 1: 6/10\nAnswer 2: 9/10", SECOND),
    ("Scores: 5 and 5", TIE),
    ("I'm sorry, but I can't assist with that.", "refused"),
    ("I cannot help with medical images.", "refused"),
    ("It cannot be determined from this image.", "abstained"),
    ("I abstain.", "abstained"),
    ("", "unparsed"),
    ("The image shows a chest radiograph.", "unparsed"),
    ("Answer 1 says left. Answer 2 says right.", "unparsed"),
    ("Answer 1 is not better.", "unparsed"),
    ("It is hard to say whether answer 1 is better.", "unparsed"),
    ("I don't think the first answer is better.", "unparsed"),
    ("It is not legible. Answer 1 is better.", FIRST),
]
SCORES: list[tuple[str, int, object]] = [
    ("Scores: 8, 7", 2, (8, 7)),
    ("Scores: 8, 3, 5, 10", 4, (8, 3, 5, 10)),
    ("**Scores:** 8, 7", 2, (8, 7)),
    ("Scores: **8, 7**", 2, (8, 7)),
    ("Scores: 8/10, 7/10", 2, (8, 7)),
    ("Scores: [8, 7]", 2, (8, 7)),
    ("Scores: abstain", 2, "abstained"),
    ("8, 7", 2, (8, 7)),
    ("8 7", 2, (8, 7)),
    ("8 | 7 | 6", 3, (8, 7, 6)),
    ("9/10 vs 7/10", 2, (9, 7)),
    ("9/10 vs. 7/10", 2, (9, 7)),
    ("7.5, 8.25", 2, (7.5, 8.25)),
    ("80/100, 55/100", 2, (8, 5.5)),
    ("4/5, 2/5", 2, (8, 4)),
    ("8 7\n\nAnswer 1 names the side, answer 2 does not.", 2, (8, 7)),
    ("The first one is good.\n\nScores: 8, 7\n\nNo, better:\nScores: 6, 7", 2, (6, 7)),
    ("Answer 1: 8\nAnswer 2: 3", 2, (8, 3)),
    ("**Answer 1**: 8/10\n**Answer 2**: 3/10", 2, (8, 3)),
    ("Answer 1 - 8/10: right. \nAnswer 2 - 3/10: wrong.", 2, (8, 3)),
    ("Answer A: 8\nAnswer B: 3", 2, (8, 3)),
    ("| 1 | 8 |\n| 2 | 3 |", 2, (8, 3)),
    ("| Answer 1 | 8 |\n|---|---|\n| Answer 2 | 3 |", 2, (8, 3)),
    ("Answer 2: 3\nAnswer 1: 8", 2, (8, 3)),
    ("Answer 1 gets a 8, answer 2 gets a 3.", 2, (8, 3)),
    ('{"reason": "x", "scores": [8, 3]}', 2, (8, 3)),
    ('{"reason": "x", "scores": []}', 2, "abstained"),
    ('{"scores": null}', 2, "abstained"),
    ('```json\n{"reason": "x",\n "scores": [8, 3.5]}\n```', 2, (8, 3.5)),
    ('{"scores": [{"answer": 1, "score": 8}, {"answer": 2, "score": 3}]}', 2, (8, 3)),
    ('{"scores": {"1": 8, "2": 3}}', 2, (8, 3)),
    ('{"answer_1": 8, "answer_2": 3}', 2, (8, 3)),
    ('{"Answer A": {"score": 8}, "Answer B": {"score": 3}}', 2, (8, 3)),
    ('{"scores": ["8/10", "3"]}', 2, (8, 3)),
    ('{"scores": [8]}', 2, "unparsed"),
    ('{"scores": [8, 11]}', 2, "unparsed"),
    ('{"scores": [8, NaN]}', 2, "unparsed"),
    ('{"scores": [true, false]}', 2, "unparsed"),
    ("<think>Scores: 1, 1</think>Scores: 8, 3", 2, (8, 3)),
    ("Scores: 8", 2, "unparsed"),
    ("Scores: -1, 3", 2, "unparsed"),
    ("There are 2 lungs and 12 ribs.", 2, "unparsed"),
    ("Answer 1: 8", 2, "unparsed"),
    ("Answer 1: 3 nodules. Answer 2: 2 nodules.", 2, "unparsed"),
    ("Answer 1: 8 (it names the side)\nAnswer 2: 3 (it does not)", 2, (8, 3)),
    ("I'm sorry, I cannot evaluate this.", 2, "refused"),
    ("I am unable to judge this image.", 2, "abstained"),
]


@pytest.mark.parametrize(("text", "wanted"), VERDICTS, ids=[text[:40] or "nothing" for text, _ in VERDICTS])
def test_a_verdict_is_read(text: str, wanted: object) -> None:
    found = read_verdict(text)
    assert (found.scores if found.cause is None else found.cause) == wanted


@pytest.mark.parametrize(("text", "count", "wanted"), SCORES, ids=[text[:40] or "nothing" for text, *_ in SCORES])
def test_scores_are_read(text: str, count: int, wanted: object) -> None:
    found = read_scores(text, count)
    assert (found.scores if found.cause is None else found.cause) == (
        pytest.approx(wanted) if isinstance(wanted, tuple) else wanted
    )


def test_the_table_has_at_least_60_replies() -> None:
    assert len({text for text, _ in VERDICTS}) + len({text for text, *_ in SCORES}) >= 60


PIECES = ["Verdict: ", "1", "2", "tie", "Scores: ", ", ", "8/10", "{", "}", '"scores": [', "]", '"verdict": ', "[[A]]", "\n"]
pieces = st.sampled_from([*PIECES, "answer 1", "|"])


@given(st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join)), st.integers(2, 6))
@example("[" * 100_000, 2)
@example('{"a":' * 50_000, 2)
@example("{" * 100_000, 3)
@example('{"scores": [' + "9" * 5000 + ", 1]}", 2)
@example("Scores: " + "1, " * 20_000, 2)
@example("Verdict: " * 20_000, 2)
@example("8 " * 20_000, 3)
@example("I'm sorry " * 5_000, 2)
def test_no_words_raise_anything_and_all_end_in_scores_or_a_cause(text: str, count: int) -> None:
    for found, size in ((read_verdict(text), 2), (read_scores(text, count), count)):
        assert (found.scores is None) != (found.cause is None)
        assert found.cause in (None, "unparsed", "abstained", "refused")
        if found.scores is not None:
            assert len(found.scores) == size
            assert all(0 <= score <= 10 for score in found.scores)


@given(st.lists(st.integers(0, 10), min_size=2, max_size=8), st.text(alphabet="abc .\n", max_size=40))
def test_scores_survive_every_way_of_writing_them(marks: list[int], before: str) -> None:
    wanted = tuple(map(float, marks))
    count = len(marks)
    line = ", ".join(map(str, marks))
    assert read_scores(f"{before}\nScores: {line}", count).scores == wanted
    assert read_scores(f"{before}\n{json.dumps({'reason': before, 'scores': marks})}", count).scores == wanted
    each = "\n".join(f"Answer {number}: {mark}/10" for number, mark in enumerate(marks, 1))
    assert read_scores(f"{before}\n{each}", count).scores == wanted


@given(st.sampled_from(["1", "2", "tie"]), st.text(alphabet="abc .,\n", max_size=60))
def test_the_reason_before_a_verdict_does_not_change_it(verdict: str, before: str) -> None:
    wanted = {"1": FIRST, "2": SECOND, "tie": TIE}[verdict]
    assert read_verdict(f"{before}\nVerdict: {verdict}").scores == wanted
    assert read_verdict(json.dumps({"reason": before, "verdict": verdict})).scores == wanted


def test_the_reason_is_the_models_words() -> None:
    assert read_verdict('{"reason": " an effusion ", "verdict": "1"}').reason == "an effusion"
    assert read_verdict("An effusion.\nVerdict: 1").reason == "An effusion.\nVerdict: 1"
