"""Reading what models say: a table of replies of every shape, and properties of all others."""

import json
from collections.abc import Callable
from functools import partial
from time import thread_time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.hostile import WHOLE, hostile
from stllava.experts.model.verdict_parser import FIRST, SECOND, TIE, ParsedReply, parse_scores, parse_verdict

VERDICTS: list[tuple[str, object]] = [
    ("Verdict: 1", FIRST),
    ("Verdict: 2", SECOND),
    ("Verdict: tie", TIE),
    ("Verdict: abstain", "abstained"),
    ("**Verdict:** 2", SECOND),
    ("**Verdict: 2**", SECOND),
    ("### Verdict: 2", SECOND),
    ("- **Verdict:** `2`.", SECOND),
    ("verdict - answer 2", SECOND),
    ("VERDICT: TIE", TIE),
    ("Final verdict: Answer 1.", FIRST),
    ("Verdict: [[B]]", SECOND),
    ("Verdict: Answer 2 is better.", SECOND),
    ("The image shows an effusion. Answer 1 misses it.\n\nVerdict: 2", SECOND),
    ("The image shows an effusion.\r\nVerdict: 2\r\n", SECOND),
    ("Verdict: 1\n\nOn reflection I was wrong.\n\nVerdict: 2", SECOND),
    ("Is answer 1 better? Hard to say, but it names the side.\nVerdict: 1", FIRST),
    ("I can't provide medical advice, but answer 1 names the side.\nVerdict: 1", FIRST),
    ("Ｖｅｒｄｉｃｔ：２", SECOND),
    ("左侧有积液。\nVerdict：１", FIRST),
    ("```\nVerdict: 2\n```", SECOND),
    ("<answer>Verdict: 2</answer>", SECOND),
    ("Verdict: 2<|im_end|>", SECOND),
    ("Verdict: 2\n\nI hope this helps!", SECOND),
    ("[[A]]", FIRST),
    ("After all, [[B]]", SECOND),
    ("My verdict is: [[A]]", FIRST),
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
    ('{"reason": "first\nthen", "verdict": "２"}', SECOND),
    ('{"verdict": "1"}\nNo, answer 2 names the side:\n{"verdict": "2"}', SECOND),
    ("{'reason': 'it is right', 'verdict': '1'}", FIRST),
    ("{'reason': \"it's right\", 'verdict': 'tie'}", TIE),
    ("{'reason': 'it's right, he said', 'verdict': '2'}", SECOND),
    ("{'reason': 'it\\'s the \"left\" side', 'verdict': '2'}", SECOND),
    ("{'verdict': None}", "abstained"),
    ("<think>Verdict: 1? No.</think>Verdict: 2", SECOND),
    ("Verdict: 1? No.</think>Verdict: 2", SECOND),
    ('<think>Answer 1 is better</think>\n\n{"verdict": "2"}', SECOND),
    ("<thinking>Verdict: 1</thinking>\nVerdict: 2", SECOND),
    ("[THINK]Verdict: 1[/THINK]Verdict: 2", SECOND),
    ("◁think▷Verdict: 1◁/think▷Verdict: 2", SECOND),
    ("<|channel>thought\nVerdict: 1<channel|>Verdict: 2<turn|>", SECOND),
    ("<unused94>thought\nVerdict: 1<unused95>Verdict: 2", SECOND),
    ("<think></think><|begin_of_box|>1<|end_of_box|>", FIRST),
    ("<|channel|>analysis<|message|>1?<|end|><|start|>assistant<|channel|>final<|message|>Verdict: 2<|return|>", SECOND),
    ('<|channel|>final <|constrain|>json<|message|>{"verdict": "2"}', SECOND),
    ("1", FIRST),
    ("2.", SECOND),
    ("**2**", SECOND),
    ("２", SECOND),
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
    # Kinds of public reports: LaTeX boxes, unseen marks, JSON that is almost JSON, remarks, negations, bare Harmony.
    ("Verdict: \\boxed{2}", SECOND),
    ("Answer 2 names the side.\n\n$\\boxed{2}$", SECOND),
    ("Verdict: $\\boxed{\\text{tie}}$", TIE),
    ("\ufeffVerdict:\u200b 2\u200b", SECOND),
    ("Verdict: 2\x00", SECOND),
    ("Reason.\u2028Verdict: 2", SECOND),
    ("Reason.\rVerdict: 2", SECOND),
    ("**Verdict:**\n\n**2**", SECOND),
    ("Verdict: 2\n\n---", SECOND),
    ("Answer 2 names the side. Verdict: 2", SECOND),
    ("Answer 2 names the side: the left one. **Final Verdict: 2**", SECOND),
    ("Why so. " * 100 + "Verdict: 2", SECOND),
    ("✅ **Verdict: 2**", SECOND),
    ("Verdict: two", SECOND),
    ("Verdict: (b)", SECOND),
    ("Verdict: the first answer", FIRST),
    ("Verdict: Answer 2 is the better answer.", SECOND),
    ('Verdict: "2" (answer 2 is better)', SECOND),
    ("Verdict: It's a tie.", TIE),
    ('{"reason": "x", "verdict": "2",}', SECOND),
    ('```json\n{\n  "reason": "x",\n  "verdict": "2",\n}\n```', SECOND),
    ('{"reason": "5 \\mu m in \\(x\\), it\\\'s small", "verdict": "2"}', SECOND),
    ('{"reason": "the "left" lung", "verdict": "2"}', SECOND),
    ('{"reason": "x", "verdict": 2.0}', SECOND),
    ('{"reason": "x", "verdict": "answer_2"}', SECOND),
    ('{"reason": "x", "verdict": "1 (answer 1 is better)"}', FIRST),
    ("analysisWe need to compare. Verdict: 1?assistantfinalVerdict: 2", SECOND),
    ('analysisThe form is {"verdict": "1"}', "unparsed"),
    ("There is no reason to overturn the verdict: 2", "unparsed"),
    ("It would be e.g. Verdict: 1", "unparsed"),
    ("I can't give a Verdict: 1", "unparsed"),
    ("Verdict: 1 (answer 2 is better)", "unparsed"),
    ("Verdict: 1 (worse)", "unparsed"),
    ("Verdict: 2 is worse", "unparsed"),
    ("Verdict: -1", "unparsed"),
    ("I would not say that it is [[A]]", "unparsed"),
    ("If the side mattered it would be: [[A]]", "unparsed"),
    ("Possible verdicts are, for example: [[A]]", "unparsed"),
    ('{"reason": "...", "verdict": "1"}', "unparsed"),
    ('{"reason": "he says "verdict": "1", but", "verdict": "2"}', "unparsed"),
    ("I'm unable to view images.\nVerdict: tie", "refused"),
    ('{"reason": "I cannot see the image.", "verdict": "1"}', "refused"),
    ("I cannot see an effusion in the image.\nVerdict: 1", FIRST),
]
SCORES: list[tuple[str, int, object]] = [
    ("Scores: 8, 7", 2, (8, 7)),
    ("Scores: 8, 3, 5, 10", 4, (8, 3, 5, 10)),
    ("**Scores:** 8, 7", 2, (8, 7)),
    ("Scores: **8, 7**", 2, (8, 7)),
    ("Scores: 8/10, 7/10", 2, (8, 7)),
    ("Scores: 8 / 10, 7 / 10", 2, (8, 7)),
    ("Scores: [8, 7]", 2, (8, 7)),
    ("Scores: 8 and 7.", 2, (8, 7)),
    ("Scores：８，７", 2, (8, 7)),
    ("Scores: abstain", 2, "abstained"),
    ("8, 7", 2, (8, 7)),
    ("8 7", 2, (8, 7)),
    ("8 | 7 | 6", 3, (8, 7, 6)),
    ("9/10 vs 7/10", 2, (9, 7)),
    ("9/10 vs. 7/10", 2, (9, 7)),
    ("7.5, 8.25", 2, (7.5, 8.25)),
    ("80/100, 55/100", 2, (8, 5.5)),
    ("4/5, 2/5", 2, (8, 4)),
    ("The first one is good.\n\nScores: 8, 7\n\nNo, better:\nScores: 6, 7", 2, (6, 7)),
    ('{"reason": "x", "scores": [8, 3]}', 2, (8, 3)),
    ('{"reason": "x", "scores": [８, ３]}', 2, (8, 3)),
    ('{"reason": "x", "scores": []}', 2, "abstained"),
    ('{"scores": null}', 2, "abstained"),
    ('```json\n{"reason": "x",\n "scores": [8, 3.5]}\n```', 2, (8, 3.5)),
    ("{'reason': 'x', 'scores': [8, 3]}", 2, (8, 3)),
    ('{"scores": [{"answer": 1, "score": 8}, {"answer": 2, "score": 3}]}', 2, (8, 3)),
    ('{"scores": {"1": 8, "2": 3}}', 2, (8, 3)),
    ('{"answer_1": 8, "answer_2": 3}', 2, (8, 3)),
    ('{"Answer A": {"score": 8}, "Answer B": {"score": 3}}', 2, (8, 3)),
    ('{"scores": ["8/10", "3"]}', 2, (8, 3)),
    ('{"scores": [8]}', 2, "unparsed"),
    ('{"scores": [8, 11]}', 2, "unparsed"),
    ('{"scores": [8, NaN]}', 2, "unparsed"),
    ('{"scores": [8, ' + "9" * 400 + "]}", 2, "unparsed"),
    ('{"scores": [true, false]}', 2, "unparsed"),
    ("<think>Scores: 1, 1</think>Scores: 8, 3", 2, (8, 3)),
    ("2, 1, 3", 3, "unparsed"),
    ("Scores: 2, 1, 3", 3, (2, 1, 3)),
    ("Scores: 8", 2, "unparsed"),
    ("Scores: -1, 3", 2, "unparsed"),
    ("There are 2 lungs and 12 ribs.", 2, "unparsed"),
    ("Answer 1: 8", 2, "unparsed"),
    ("Answer 1: 3 nodules. Answer 2: 2 nodules.", 2, "unparsed"),
    ("I'm sorry, I cannot evaluate this.", 2, "refused"),
    ("I am unable to judge this image.", 2, "abstained"),
    # Scores that name their answers, in any order, and the decorations of the verdicts above.
    ('{"scores": [{"answer": 2, "score": 3}, {"answer": 1, "score": 8}]}', 2, (8, 3)),
    ('{"scores": [{"id": "2", "score": 3}, {"id": "1", "score": 8}]}', 2, (8, 3)),
    ('{"scores": [{"name": "Answer B", "score": 3}, {"name": "Answer A", "score": 8}]}', 2, (8, 3)),
    ('{"scores": [{"answer": 1, "score": 3}, {"answer": 1, "score": 8}]}', 2, "unparsed"),
    ('{"scores": [{"answer": 2, "score": 3}, {"score": 8}]}', 2, "unparsed"),
    ('{"scores": [{"answer": 2, "score": 3}, 8]}', 2, "unparsed"),
    ('{"scores": [{"index": 0, "score": 3}, {"index": 1, "score": 8}]}', 2, "unparsed"),
    ('{"scores": [{"answer": "left lung", "score": 8}, {"answer": "right lung", "score": 3}]}', 2, (8, 3)),
    ("Scores: Answer 1: 8, Answer 2: 3", 2, (8, 3)),
    ("Scores: Answer 2: 3, Answer 1: 8", 2, (8, 3)),
    ("Scores: Answer 1: 8, Answer 1: 3", 2, "unparsed"),
    ("Scores: Answer 1: 8, 3", 2, "unparsed"),
    ("Both name the side. **Scores: 8, 3**", 2, (8, 3)),
    ("Scores:\n8, 3", 2, (8, 3)),
    ("Scores: \\boxed{8, 3}", 2, (8, 3)),
    ('{"reason": "x", "scores": [8, 3,],}', 2, (8, 3)),
    ('{"reason": "...", "scores": [8, 3]}', 2, "unparsed"),
]
ONCE_VERDICTS: list[tuple[str, tuple[float, float]]] = [
    ("## Verdict\n\n**Answer 1**", FIRST),
    ("Winner: Response A", FIRST),
    ("Winner: B", SECOND),
    ("My preference: Answer 2", SECOND),
    ("The better answer is answer 1.", FIRST),
    ("Answer 2 is better because it names the side.", SECOND),
    ("Answer 1 is clearly more accurate.", FIRST),
    ("The second answer is better.", SECOND),
    ("I prefer answer 1.", FIRST),
    ("I would choose Response B", SECOND),
    ("Both answers are equally good.", TIE),
    ("It is a tie.", TIE),
    ("Neither answer is better.", TIE),
    ("It is not legible. Answer 1 is better.", FIRST),
    ("**B**", SECOND),
    ("Tie", TIE),
    ("8, 7", FIRST),
    ("8 7\n\nAnswer 1 is more complete.", FIRST),
    ("9/10 vs 7/10", FIRST),
    ("Answer 1: 6/10\nAnswer 2: 9/10", SECOND),
    ("Scores: 5 and 5", TIE),
]
"""What used to be read as a verdict, and as which: prose, other labels, words alone, scores where a verdict is asked for."""
ONCE_SCORES: list[tuple[str, tuple[float, float]]] = [
    ("8 7\n\nAnswer 1 names the side, answer 2 does not.", (8, 7)),
    ("Answer 1: 8\nAnswer 2: 3", (8, 3)),
    ("**Answer 1**: 8/10\n**Answer 2**: 3/10", (8, 3)),
    ("Answer 1 - 8/10: right. \nAnswer 2 - 3/10: wrong.", (8, 3)),
    ("Answer A: 8\nAnswer B: 3", (8, 3)),
    ("| 1 | 8 |\n| 2 | 3 |", (8, 3)),
    ("| Answer 1 | 8 |\n|---|---|\n| Answer 2 | 3 |", (8, 3)),
    ("Answer 2: 3\nAnswer 1: 8", (8, 3)),
    ("Answer 1 gets a 8, answer 2 gets a 3.", (8, 3)),
    ("Answer 1: 8 (it names the side)\nAnswer 2: 3 (it does not)", (8, 3)),
]
"""What used to be read as scores, and as which: a line or a row an answer, and numbers before the reasons."""


@pytest.mark.parametrize(("text", "wanted"), VERDICTS, ids=[text[:40] or "nothing" for text, _ in VERDICTS])
def test_a_verdict_is_read(text: str, wanted: object) -> None:
    found = parse_verdict(text)
    assert (found.scores if found.cause is None else found.cause) == wanted


@pytest.mark.parametrize(("text", "count", "wanted"), SCORES, ids=[text[:40] or "nothing" for text, *_ in SCORES])
def test_scores_are_read(text: str, count: int, wanted: object) -> None:
    found = parse_scores(text, count)
    assert (found.scores if found.cause is None else found.cause) == (
        pytest.approx(wanted) if isinstance(wanted, tuple) else wanted
    )


@pytest.mark.parametrize(("text", "once"), ONCE_VERDICTS, ids=[text[:40] for text, _ in ONCE_VERDICTS])
def test_what_is_not_said_as_demanded_is_no_verdict(text: str, once: tuple[float, float]) -> None:
    assert parse_verdict(text).cause == "unparsed", f"it used to be {once}"


@pytest.mark.parametrize(("text", "once"), ONCE_SCORES, ids=[text[:40] for text, _ in ONCE_SCORES])
def test_what_is_not_said_as_demanded_are_no_scores(text: str, once: tuple[float, float]) -> None:
    assert parse_scores(text, 2).cause == "unparsed", f"they used to be {once}"


CHEAP = 0.05
"""Seconds that a reply may take: a stage reads thousands, and reads them again whenever it goes on."""
HOSTILE = list(hostile())


@pytest.mark.parametrize("read", [parse_verdict, partial(parse_scores, count=2)], ids=["verdict", "scores"])
def test_no_hostile_reply_is_a_verdict_or_takes_long(read: Callable[[str], ParsedReply]) -> None:
    assert len({text for _, text in HOSTILE}) >= 300
    for kind, text in HOSTILE:
        began = thread_time()
        found = read(text)
        spent = thread_time() - began
        for _ in range(3):  # A collection of garbage, or others' work on the same caches, may have come between.
            if spent > CHEAP:
                began = thread_time()
                read(text)
                spent = min(spent, thread_time() - began)
        assert found.scores is None, kind
        assert found.cause in ("unparsed", "abstained", "refused"), kind
        assert spent <= CHEAP, f"{kind}: {spent:.3f} s"


@pytest.mark.parametrize("text", WHOLE, ids=["double quotes", "single quotes", "a fence"])
def test_a_reply_in_json_is_read_whole_and_no_beginning_of_it(text: str) -> None:
    assert (parse_verdict(text).scores, parse_scores(text, 2).scores) == (FIRST, (8, 3))
    for end in range(text.rindex("}") + 1):
        assert parse_verdict(text[:end]).cause == parse_scores(text[:end], 2).cause == "unparsed", text[:end]


@pytest.mark.parametrize("text", ["<think>Verdict: 1", '{"reason": "Answer 1 is better because it names'])
def test_a_reply_that_breaks_off_says_what_to_raise(text: str) -> None:
    assert "raise max_tokens" in parse_verdict(text).reason
    assert "raise max_tokens" in parse_scores(text, 2).reason


@given(st.sampled_from(HOSTILE), st.sampled_from(["Verdict: 2", '{"reason": "x", "verdict": "2"}']), st.integers(0, 400))
def test_a_verdict_behind_a_thought_does_not_depend_on_what_was_thought(row: tuple[str, str], verdict: str, end: int) -> None:
    thought = "".join(mark for mark in row[1][:end] if mark not in "<>[]◁▷")
    assert parse_verdict(f"<think>{thought}</think>{verdict}").scores == SECOND


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
    for found, size in ((parse_verdict(text), 2), (parse_scores(text, count), count)):
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
    assert parse_scores(f"{before}\nScores: {line}", count).scores == wanted
    assert parse_scores(f"{before}\n{json.dumps({'reason': before, 'scores': marks})}", count).scores == wanted
    each = {f"answer {number}": f"{mark}/10" for number, mark in enumerate(marks, 1)}
    assert parse_scores(f"{before}\n{json.dumps(each)}", count).scores == wanted


reasons = st.text(alphabet="abc .,\n", max_size=60).filter(lambda text: text.strip() != "...")  # The form's own.


@given(st.sampled_from(["1", "2", "tie"]), reasons)
def test_the_reason_before_a_verdict_does_not_change_it(verdict: str, before: str) -> None:
    wanted = {"1": FIRST, "2": SECOND, "tie": TIE}[verdict]
    assert parse_verdict(f"{before}\nVerdict: {verdict}").scores == wanted
    assert parse_verdict(json.dumps({"reason": before, "verdict": verdict})).scores == wanted


def test_the_reason_is_the_models_words() -> None:
    assert parse_verdict('{"reason": " an effusion ", "verdict": "1"}').reason == "an effusion"
    assert parse_verdict("An effusion.\nVerdict: 1").reason == "An effusion.\nVerdict: 1"
