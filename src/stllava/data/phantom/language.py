"""What is said of a phantom: its caption, questions about it with their right answers, conversations and samples.

Reads and writes nothing. Words are lower case; a question ends with "?", an answer has no punctuation. A question that
presupposes a finding which is not there has one right answer: that it is not there.
"""

from dataclasses import astuple, replace

import numpy as np

from stllava.data.phantom.answer_parser import understand
from stllava.data.phantom.questions import TEMPLATES, Query, normal, plural, word
from stllava.data.phantom.truth import COUNTED, DARK, FINDINGS, LEVELS, MODALITIES, ORGANS, SIDES, SIZES, Region, Truth, random
from stllava.records import Conversation, Message, QuestionKind, Sample, content_id

__all__ = ["Query", "answer", "caption", "conversations", "normal", "samples", "understand"]

NUMBERS = ("no", "one", "two", "three")
SYSTEMS: dict[Region, str] = {"chest": "respiratory system", "abdomen": "digestive system", "head": "nervous system"}
DESCRIBE = ("Describe the image.",) * 4 + ("What does the image show?", "Give a short report.", "Summarize the image.")
FALSE_PREMISE = 0.084
CONVERSATIONS, CONVERSATION_TURNS, SINGLE_TURNS, SAMPLES = 6, 2, 12, 7


def place(truth: Truth) -> str:
    """Where the finding is, in words."""
    return f"{truth.side} {truth.level} {ORGANS[truth.region]}"


def report(truth: Truth) -> str:
    """The finding in full, or that there is none."""
    if truth.finding == "none":
        return "no abnormality"
    what = truth.finding if truth.count == 1 else plural(truth.finding)
    number = "" if truth.count == 1 else f"{NUMBERS[truth.count]} "
    return f"{number}{truth.size} {what} in the {place(truth)}"


def tone(truth: Truth) -> str:
    """How the finding looks beside its surroundings."""
    return "darker" if truth.finding in DARK else "brighter"


def caption(truth: Truth) -> str:
    """One sentence about the image."""
    if truth.finding == "none":
        return f"normal {truth.region} {truth.modality}."
    article = "a " if truth.count == 1 else ""
    return f"{truth.region} {truth.modality} with {article}{report(truth)}."


def _yes(fact: bool) -> tuple[str, ...]:
    return ("yes",) if fact else ("no",)


def _fits(query: Query, truth: Truth) -> bool:
    """Whether whatever the query names beside the finding is so; more than what it names may be true."""
    shown = {"modality": truth.modality, "region": truth.region}
    seen = {"side": truth.side, "level": truth.level, "size": truth.size, "count": NUMBERS[truth.count], "tone": tone(truth)}
    facts = Query(query.template, query.finding, **shown, **seen)
    return all(named in (None, fact) for named, fact in zip(astuple(query), astuple(facts), strict=True))


def _presupposed(query: Query, truth: Truth) -> tuple[str, ...]:
    """Answers to questions about a finding that is there."""
    number = NUMBERS[truth.count]
    answers: dict[str, tuple[str, ...]] = {
        "side": (str(truth.side),),
        "level": (str(truth.level),),
        "where": (place(truth),),
        "size": (str(truth.size),),
        "count": (number, str(truth.count), f"{number} {truth.finding if truth.count == 1 else plural(truth.finding)}"),
        "tone": (tone(truth),),
    }
    return answers[query.template] if query.template in answers else _yes(_fits(query, truth))


def answer(query: Query, truth: Truth) -> tuple[str, ...]:
    """The right answers, the usual one first; none where the truth cannot decide."""
    nothing = truth.finding == "none"
    there = not nothing and query.finding in (truth.finding, "abnormality")
    if TEMPLATES[query.template].presupposes:
        if there:
            return _presupposed(query, truth)
        return ("no abnormality",) if query.finding == "abnormality" else (f"there is no {query.finding}",)
    elsewhere, fits = query.region not in (None, truth.region), _fits(query, truth)
    what = ("no abnormality",) if nothing else (truth.finding, plural(truth.finding))[: 1 + (truth.count > 1)]
    answers: dict[str, tuple[str, ...]] = {
        "modality": (truth.modality,),
        "region": (truth.region,),
        "system": (SYSTEMS[truth.region],),
        "is modality": _yes(fits),
        "is region": _yes(fits),
        "normal": () if elsewhere else _yes(nothing or not fits),
        "any": _yes(not nothing),
        "what": what,
        "what at": () if elsewhere else what if fits else ("no abnormality",),
        "presence": _yes(there and fits),
        "place": _yes(there and fits),
        "report": (report(truth),),
        "describe": (caption(truth),),
        "several": _yes(there and truth.count > 1),
        "is what": what if nothing else _yes(there),
    }
    return answers[query.template]


def _pick(rng: np.random.Generator, choices: tuple[str, ...], *, but: str | None = None) -> str:
    left = [choice for choice in choices if choice != but]
    return left[rng.integers(len(left))]


def ask(template: str, truth: Truth, rng: np.random.Generator) -> Query:
    """A query of that template about the image, as often yes as no over many images where it is closed."""
    nothing, right = truth.finding == "none", bool(rng.random() < 0.5)
    likely = not nothing and rng.random() < 0.66
    local: tuple[str, ...] = FINDINGS[truth.region]
    other = _pick(rng, local, but=truth.finding)
    query = Query(template)
    if template == "is modality":
        return replace(query, modality=truth.modality if right else _pick(rng, MODALITIES, but=truth.modality))
    if template == "presence":
        return replace(query, finding=truth.finding if likely else other)
    if template == "place":
        finding = other if nothing else truth.finding
        side, level = truth.side or _pick(rng, SIDES), truth.level or _pick(rng, LEVELS)
        query = replace(query, finding=finding, side=side, level=level, region=truth.region)
        wrong = int(rng.integers(3))
        if likely or nothing:
            return query
        if wrong == 2:
            return replace(query, finding=other)
        return (
            replace(query, level=_pick(rng, LEVELS, but=level)) if wrong else replace(query, side=_pick(rng, SIDES, but=side))
        )
    if not TEMPLATES[template].presupposes and template != "several":
        return query
    generic = template not in ("count", "several") and rng.random() < 0.25
    false = nothing or (template != "several" and rng.random() < FALSE_PREMISE)
    named = other if false else truth.finding
    query = replace(query, finding="abnormality" if generic and (nothing or not false) else named)
    if template == "is side":
        return replace(query, side=_pick(rng, SIDES))
    return replace(query, size=_pick(rng, SIZES)) if template == "is size" else query


def _weight(name: str, truth: Truth) -> float:
    """How eagerly a template is taken for an image, so that all are asked about equally often over many."""
    template, nothing = TEMPLATES[name], truth.finding == "none"
    weight = 1.0 if template.closed else 0.8
    if name in ("count", "several"):
        return weight * (4.0 * (truth.finding in COUNTED) + 0.1 * (nothing and name == "count"))
    if name in ("normal", "any"):
        return 1.6 if nothing else 0.36
    if template.presupposes:
        return weight * (0.15 if nothing else 1.1)
    return weight * (1.0 if template.general else 0.8)


def _asked(truth: Truth, number: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """So many questions of different templates with their answers."""
    weights = {name: _weight(name, truth) for name, template in TEMPLATES.items() if template.wordings}
    keys = {name: rng.exponential() / weight for name, weight in weights.items() if weight > 0}
    turns = []
    for name in sorted(keys, key=lambda name: keys[name])[:number]:
        query = ask(name, truth, rng)
        turns.append((word(query, _pick(rng, TEMPLATES[name].wordings)), answer(query, truth)[0]))
    return turns


def _talk(truth: Truth, turns: list[tuple[str, str]]) -> Conversation:
    messages = [
        message
        for user, reply in turns
        for message in (Message(role="user", content=user), Message(role="assistant", content=reply))
    ]
    key = content_id([truth.path], [message.content for message in messages])
    return Conversation(id=key, images=(truth.path,), messages=tuple(messages))


def conversations(truth: Truth, *, seed: int) -> list[Conversation]:
    """What the labelled split says of an image: it described and discussed in short talks, then single questions."""
    rng = random("conversations", seed, truth.path)
    talks = [
        _talk(truth, [(_pick(rng, DESCRIBE), caption(truth)), *_asked(truth, CONVERSATION_TURNS, rng)])
        for _ in range(CONVERSATIONS)
    ]
    talks += [_talk(truth, [turn]) for turn in _asked(truth, SINGLE_TURNS, rng)]
    return list({talk.id: talk for talk in talks}.values())


def samples(truth: Truth, *, seed: int, split: str) -> list[Sample]:
    """Benchmark questions about an image; closed are those answered yes or no."""
    made = []
    for question, target in _asked(truth, SAMPLES, random("samples", seed, truth.path)):
        kind: QuestionKind = "closed" if target in ("yes", "no") else "open"
        key = content_id("phantom", truth.path, question, target)
        made.append(Sample(id=key, image=truth.path, question=question, targets=(target,), kind=kind, split=split))
    return made
