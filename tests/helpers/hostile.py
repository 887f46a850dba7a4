"""Replies from which no verdict may be read: degenerate, unfinished, doubtful, retracted, refusing, echoing, contradictory.

The kinds are those of public reports about judges that are models: repetition until the limit of tokens, thoughts without
an end (Qwen, DeepSeek, Magistral, gpt-oss, Gemma 4, Kimi, Command A, Seed), JSON cut inside its reason, labels that stand
in the reasons only, refusals under a schema, the prompt's own example repeated, and floods of brackets and quotes.
"""

import json
from collections.abc import Iterator

from stllava.experts.model.rubric import load_rubric

LONG = 100_000
"""Characters of a degenerate reply."""

RUNS = {
    "newlines": "\n",
    "blanks": " ",
    "blanks and newlines": " \n",
    "tabs": "\t",
    "carriage returns": "\r\n",
    "digits": "8",
    "digits and blanks": "1 ",
    "tenths": "8/10, ",
    "tenths in lines": "8/10\n",
    "commas": ", ",
    "full stops": ". ",
    "open braces": "{",
    "open objects": '{"a":',
    "open objects in single quotes": "{'a':",
    "objects": '{"a": 1} ',
    "empty objects": "{} ",
    "verdicts of nothing": '{"verdict": ',
    "open brackets": "[",
    "doubled brackets": "[[",
    "brackets around blanks": "[[ ]] ",
    "double quotes": '"',
    "single quotes": "'",
    "escaped quotes": "\\'",
    "backslashes": "\\",
    "a backslash a quote": '\\"',
    "apostrophes in an object": "{'it's ",
    "verdict labels": "Verdict: ",
    "score labels": "Scores: ",
    "scores one after the other": "Scores: 8, 3, ",
    "answers": "answer 1 ",
    "answers that are better": "answer 1 is better than ",
    "rows of a table": "| 1 | 8 ",
    "rules of a table": "|---",
    "apologies": "I'm sorry ",
    "halves of a refusal": "I can't ",
    "halves of an abstention": "cannot be ",
    "begun thoughts": "<think>",
    "ended thoughts": "</think>",
    "empty thoughts": "<think></think>",
    "begun tags": "<think ",
    "ends of a turn": "</s>",
    "channels": "<|channel|>",
    "final channels": "<|channel|>final<|message|>",
    "Gemma's channels": "<|channel>thought\n<channel|>",
    "fences": "```\n",
    "fenced json": "```json\n{",
    "emphasis": "**",
    "dashes": "- ",
    "full-width digits": "８",
    "full-width commas": "８，",
    "Arabic digits": "٨ ",
    "combining marks": "a\u0301\u0327\u0323",
    "combining marks out of order": "\u0301\u0316",
    "emoji with joiners": "👩\u200d⚕️",
    "marks of direction": "\u202e1\u202c",
    "line separators": "\u2028",
    "next lines": "\x85",
    "zero width": "\u200b",
    "null characters": "\x00",
    "lone surrogates": "\ud800",
    "one letter": "a",
    "one word": "better ",
    "underscores": "score_",
}
"""What a degenerate reply repeats."""

VERDICTS = ("Verdict: 1", "Answer 1 is better, but", "Scores: 8, 3", '{"reason": "it names the side", "verdict": "1"}', "[[A]]")
THOUGHTS = {
    "think": "<think>",
    "thinking": "<thinking>",
    "think with a name space": "<seed:think>",
    "think with an attribute": '<think effort="high">',
    "THINK in capitals": "<THINK>",
    "Magistral": "[THINK]",
    "Kimi": "◁think▷",
    "Command A": "<|START_THINKING|>",
    "Sky": "<|begin_of_thought|>",
    "Gemma 4": "<|channel>thought\n",
    "MedGemma": "<unused94>thought\n",
    "Harmony": "<|channel|>analysis<|message|>",
    "Harmony's comments": "<|channel|>commentary<|message|>",
    "Harmony after a final channel": "<|channel|>final<|message|>Hm.<|end|><|start|>assistant<|channel|>analysis<|message|>",
    "a second thought": "<think>first</think>\nThen again:\n<think>",
    "a thought in a thought": "<think>I may write <thinking>so</thinking> and say\n",
    "a mention of the end in another's words": "<think>[/THINK]\n",
}
DOUBTS = (
    "Is answer 2 better? Hard to say.",
    "Is answer 1 better?",
    "Answer 1 is better, or so it seems at first sight.",
    "I would not say that answer 1 is better.",
    "Answer 1 is not better.",
    "If answer 2 named the side, it would be the better one.",
    "Answer 1 could be called better, answer 2 too.",
    "I cannot choose between [[A]] and [[B]].",
    "I would never say [[A]]",
    "The form asks for [[A]] or [[B]]",
    "Verdict: 1?",
    "Verdict: 1 or 2",
    "Verdict: 1/2",
    "Verdict: 1 | 2 | tie | abstain",
    "Verdict: not 1",
    "Verdict: neither 1 nor 2",
    "Verdict: 1 seems right, though answer 2",
    "Verdict: 12",
    "Verdict: 3",
    "Verdict: -1",
    "Verdict: 1.5",
    "Verdict:",
    "Verdict: …",
    "It would be wrong to end with Verdict: 1",
    'Some would say "Verdict: 2"',
    "> Verdict: 1",
    "Scores: 8 or 9, 3",
    "Scores: 8-9, 3",
    "Scores: ?, 3",
    "Scores: 8",
    "Scores: 8, 3, 5",
    "Scores: 11, 3",
    "Scores: -1, 3",
    "Scores: 8/10, 3",
    "Scores: 8/7, 3/7",
    "Scores: 8%, 3%",
    "Scores: 8, x",
    "The scores are 8, 3 or 3, 8",
    "1. Accuracy: answer 2 names the side.\n2. Relevance: both do.",
    "Answer 1: 3 nodules. Answer 2: 2 nodules.",
    "Answer 1: 3\nAnswer 2: 2 nodules",
    "There are 2 lungs and 12 ribs.",
    "| Answer | nodules |\n|---|---|\n| 1 | 3 |\n| 2 | 2 |",
    "On 2024-01-02 there were 8 of them, now 3",
    "A",
    "B",
    "A tie would be wrong.",
    "Both answers are good, but one of them is better.",
    "Antwort 1 ist besser.",
    "答案1更好吗？很难说。",
)
RETRACTIONS = (
    "\n\nNo, wait: I have to look again.",
    "\nOn reflection I was wrong.",
    "\nThat would be the verdict if the image were a CT. It is not.",
    " is what I would say if I could see the image.",
    "\n\nOr is it the other way round",
)
REFUSALS = (
    "I'm sorry, but I can't say that answer 1 is better than answer 2.",
    "I’m sorry, I cannot tell you whether answer 2 is the better one.",
    "As an AI I cannot prefer answer 1 over answer 2.",
    "I can't help with medical images, so I choose neither answer 1 nor answer 2.",
    "I'm sorry, I can't assist with that. Answer 1 is better",
    '{"reason": "I\'m sorry, but I can\'t assist with that.", "verdict": "1", "scores": [8, 3]}',
    '{"reason": "I cannot help with medical images.", "verdict": "2", "scores": [1, 1]}',
    "I'm sorry, but I can't assist with that.\n\nVerdict: 1",
    "I'm sorry, but I can't assist with that.\n\nScores: 1, 1",
    '{"error": "I cannot comply", "choices": ["1", "2"]}',
)
CONTRADICTIONS = (
    '{"verdict": "1", "verdict": "2", "scores": [8, 3], "scores": [3, 8]}',
    '{"verdict": "1", "winner": "B", "scores": [8, 3], "ratings": [3, 8]}',
    '{"verdict": ["1", "2"], "scores": [[8, 3], [3, 8]]}',
    '{"verdict": "1 or 2", "scores": "8 or 9, 3"}',
    '{"verdict": true, "scores": [true, false]}',
    '{"verdict": "3", "scores": [8, 3, 5]}',
    '{"verdict": 1.5, "scores": [8, 11]}',
    '{"verdict": {"answer": "1"}, "scores": {"1": 8, "answer 1": 3}}',
    '{"scores": [8, NaN]}',
    '{"scores": [1e999, 3]}',
    '{"scores": [' + "9" * 400 + ", 3]}",
    '{"scores": [' + "9" * 5_000 + ", 3]}",
    '{"1": 8, "2": 3, "3": 5}',
    '{"reason": "see below"}',
    '{"verdict": "1", "scores": [8, 3]} {"reason": "no, I was wrong"}',
    '{"details": {"verdict": "1", "scores": [8, 3]}',
    '{"reason": "the other says\nVerdict: 1',
    '{"reason": "the other says\nScores: 8, 3',
    "[[A]] [[B]]",
    "[[A]]: no, [[B]]",
)
WHOLE = (
    '{"reason": "Answer 1 is better: it names the side.", "verdict": "1", "scores": [8, 3]}',
    "{'reason': 'Answer 1 is better: it names the side.', 'verdict': '1', 'scores': [8, 3]}",
    '```json\n{\n  "reason": "Answer 1 is better.",\n  "scores": [8, 3],\n  "verdict": "1"\n}\n```',
)
"""Whole replies in JSON, with a verdict and scores; every beginning of them is unfinished."""


def hostile() -> Iterator[tuple[str, str]]:
    """Kinds and texts."""
    for name, piece in RUNS.items():
        yield f"degenerate: {name}", piece * (LONG // len(piece))
        yield f"degenerate behind words: {name}", "The image shows an effusion. " + piece * 1_024
    for name, opening in THOUGHTS.items():
        for number, verdict in enumerate(VERDICTS):
            yield f"unfinished thought: {name} {number}", f"{opening}{verdict}"
    for number, text in enumerate(WHOLE):
        end = text.rindex("}")
        for cut in range(0, end + 1, max(1, end // 12)):
            yield f"JSON cut off: {number} at {cut}", text[:cut]
    for number, text in enumerate(DOUBTS):
        yield f"doubt: {number}", text
        yield f"doubt behind reasons: {number}", f"The image shows an effusion on the left.\n\n{text}"
    for number, retraction in enumerate(RETRACTIONS):
        for verdict in ("Verdict: 1", "Scores: 8, 3", "[[A]]", WHOLE[0], WHOLE[2]):
            yield f"retraction: {number} of {verdict[:12]!r}", f"Reasons.\n{verdict}{retraction}"
    yield from ((f"refusal: {number}", text) for number, text in enumerate(REFUSALS))
    yield from ((f"contradiction: {number}", text) for number, text in enumerate(CONTRADICTIONS))
    for mode in ("pairwise", "scores"):
        for structured in (True, False):
            prompt = load_rubric(None, mode=mode, structured=structured).write("Which side?", ["left", "right"], ())
            yield f"echo of the prompt: {mode}, {structured}", prompt
            yield f"echo of its last line: {mode}, {structured}", prompt.strip().rpartition("\n")[2]
    yield "echo of the example: verdict", '{"reason": "…", "verdict": "1"}'
    yield "echo of the example: scores", '{"reason": "…", "scores": [8, 3]}'
    yield "an answer quoted", f"==== 0a1b2c3d answer 1 ====\n{json.dumps({'verdict': '1'})}\n==== 0a1b2c3d end of answer 1 ===="
