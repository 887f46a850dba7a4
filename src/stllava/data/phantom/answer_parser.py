"""How a question about a phantom is understood: every wording that is asked, and many that a model may use instead.

Reads and writes nothing. A pattern is a regular expression over normal text whose `{name}` is a slot of `SLOTS` or a part
of `PARTS`; slips of article and number are let through. A text has one meaning or none, whichever pattern it meets.
"""

import re
from functools import cache
from itertools import count

from stllava.data.phantom.questions import NAMES, TEMPLATES, Query, normal, plural
from stllava.data.phantom.truth import LEVELS, MODALITIES, ORGANS, SIDES, SIZES

FINDING_WORDS = {name: name for name in NAMES} | {plural(name): name for name in NAMES}
VAGUE = dict.fromkeys(("lesion", "lesions", "finding", "findings", "abnormal finding"), "abnormality")
PLACE_WORDS: dict[str, str] = {"lungs": "chest"}
PLACE_WORDS |= {word: region for region, organ in ORGANS.items() for word in (organ, region)}
SLOTS: dict[str, dict[str, str]] = {
    "finding": {name: name for name in NAMES},
    "findings": {plural(name): name for name in NAMES},
    "thing": FINDING_WORDS | VAGUE,
    "anything": dict.fromkeys(("anything abnormal", "anything wrong", "something abnormal", "something wrong"), "abnormality"),
    "named": {word: name for word, name in FINDING_WORDS.items() if name != "abnormality"},
    "side": {side: side for side in SIDES},
    "level": {level: level for level in LEVELS},
    "size": {size: size for size in SIZES} | {"big": "large"},
    "modality": {modality: modality for modality in MODALITIES},
    "organ": PLACE_WORDS,
    "count": {"one": "one", "1": "one", "single": "one", "two": "two", "2": "two", "three": "three", "3": "three"},
    "tone": {"brighter": "brighter", "darker": "darker", "bright": "brighter", "dark": "darker"},
}
"""Each slot's words and what they mean."""
FIELDS = dict.fromkeys(("findings", "thing", "anything", "named"), "finding") | {"organ": "region"}
PARTS = {
    "a": "(?:(?:a|the|any|some) )?",
    "which": "(?:what|which)",
    "be": "(?:is|are)",
    "do": "(?:does|do)",
    "image": "(?:image|scan|picture)",
    "this": "(?:it|this|(?:this|the) {image})",
    "body": "(?:body (?:part|region)|(?:part|region) of the body|region)",
    "seen": "(?:seen|shown|visible|present|imaged)",
    "lie": "(?:located|found|situated)",
    "showing": "(?:{be} there|{do} {this} (?:show|have|contain)|(?:do|can) you see)",
    "ill": "(?:abnormal|wrong)",
    "abnormality": "(?:abnormality|abnormalities|abnormal finding|findings?|lesions?)",
    "x": "(?:(?:the|a|this|that|any) )?{thing}",
    "seems": "(?:{be} {x}|{do} {x} (?:look|appear))",
    "number": "(?:only |exactly |just )?{count}",
    "around": "(?: than (?:its|their|the) surroundings)?",
    "area": "(?:{side} )?(?:{level} )?{organ}",
    "at side": "(?:on|in|at) the {side}(?: side| half)?",
    "at level": "(?:at|in|on) the {level} (?:level|third|part)",
    "at place": "(?:in|at|on|inside|within) (?:the )?(?:{area}|{level} {side} {organ}|{side} (?:side|half) of the {organ}"
    "|{level} (?:level|third|part) of the (?:{side} )?{organ}|{side} side at the {level} level)",
    "there": "(?:{at side}|{at level}|{at place})",
}
"""Names for what patterns have in common."""
TAIL = "(?: (?:here|(?:in|on) (?:this|the) {image}))?"
HEARD: dict[str, tuple[str, ...]] = {
    "modality": (
        "{which} (?:imaging )?modality (?:{be} (?:{this}|used|shown)|was used)",
        "{which} (?:kind|type) of (?:{image}|imaging) (?:is|was) (?:{this}|used|shown)",
        "what is the (?:modality|(?:kind|type) of {image})(?: of {this})?",
        "how was {this} (?:taken|made|acquired)",
    ),
    "region": ("{which} {body} (?:{be} (?:{this}|{seen})|{do} {this} show|can be seen)", "what is the {body}(?: {seen})?"),
    "system": ("{which} (?:organ|body) system (?:{be} (?:{this}|{seen})|{do} {this} show)",),
    "is modality": (
        "is {this} {a}(?:{organ} )?{modality}(?: {image})?",
        "is {this} {a}{modality}(?: {image})? of {a}{organ}",
        "was {this} (?:taken|made|acquired) (?:with|by) {a}{modality}",
        "is the (?:imaging )?modality {a}{modality}",
    ),
    "is region": (
        "is {this} {a}(?:{image} of {a})?{organ}",
        "is {this} {a}{organ} {image}",
        "{do} {this} show {a}{organ}",
        "{be} the {organ} {seen}",
    ),
    "normal": (
        "is (?:{this}|everything) normal",
        "is {this} {a}normal(?: {image})?",
        "(?:{be} the {area}|{do} (?:{this}|the {area}) (?:look|appear)) normal",
    ),
    "any": (
        "{showing} (?:(?:(?:any|some) )?{abnormality}|a (?:abnormal finding|finding|lesion))(?: {seen})?",
        "(?:{be} there|{do} {this} (?:show|contain)|do you see) (?:any|some)thing {ill}",
        "(?:is (?:any|some)thing|does (?:any|some)thing (?:look|appear)) {ill}",
        "is {this} {a}abnormal(?: {image})?",
        "does {this} (?:look|appear) abnormal",
        "(?:{be} {a}{abnormality}|can {a}{abnormality} be) {seen}",
    ),
    "what": (
        "{which} {be} (?:the )?{abnormality}(?: {seen})?",
        "{which} is {ill}(?: with {this})?",
        "{which} (?:(?:kind|type) of )?{abnormality} (?:{be} (?:there|{this}|{seen})|can be seen|do you see|{do} {this} show)",
    ),
    "what at": (
        "{which} {abnormality} {be} (?:{seen} )?{there}",
        "what (?:is abnormal {there}|is (?:{seen} )?{at place})",
        "what (?:abnormality )?{do} the {area} (?:show|contain)",
    ),
    "presence": (
        "{showing} {a}(?:{number} )?(?:{size} )?{named}(?: {seen})?",
        "{showing} {a}(?:{number} |(?:{number} )?{size} ){thing}(?: {seen})?",
        "(?:{be} {a}(?:{size} )?{named}|can {a}(?:{size} )?{named} be) {seen}",
    ),
    "place": (
        "{showing} {a}(?:{number} )?(?:{size} )?{thing} (?:{seen} )?{there}",
        "{showing} {a}{side}(?:-sided)? {thing}",
        "(?:{be} {a}(?:{size} )?{thing}|can {a}(?:{size} )?{thing} be) {seen} {there}",
        "{do} the {area} (?:contain|show|have) {a}(?:{number} )?(?:{size} )?{thing}",
        "is (?:there )?{anything} {there}",
    ),
    "report": (
        "what is the (?:complete|full|whole) {abnormality}",
        "(?:how would you )?(?:report|describe) the (?:(?:complete|full|whole) )?{abnormality}",
        "what is the {abnormality} and where is it",
    ),
    "describe": ("(?:please )?(?:describe|summari[sz]e) {this}", "what {do} {this} show", "give a short report"),
    "several": ("{showing} (?:more than one|several|multiple) {thing}(?: {seen})?",),
    "side": (
        "(?:(?:on|in|at) )?{which} side {be} {x}(?: {lie})?(?: (?:on|in|at))?",
        "(?:on )?{which} side (?:{do} {x} lie|has {x}|shows {x}|contains {x})(?: on)?",
        "what is the side of {x}",
        "{be} {x} (?:{lie} )?(?:on |in )?(?:the )?(?:left or (?:the )?right|right or (?:the )?left)(?: side)?",
    ),
    "level": (
        "(?:(?:at|in|on) )?{which} (?:level|height|third) {be} {x}(?: {lie})?(?: (?:at|in|on))?",
        "(?:at )?{which} level {do} {x} lie(?: at)?",
        "what is the (?:level|height) of {x}",
        "how high (?:up )?{be} {x}(?: {lie})?",
    ),
    "where": (
        "where {be} {x}(?: {lie}| {seen})?",
        "where (?:{do} {x} lie|can {x} be (?:seen|found)|(?:do|can) you see {x})",
        "{which} is the (?:location|position|place|site) of {x}",
    ),
    "size": (
        "how (?:large|big|small) {be} {x}",
        "{which} size (?:{be} {x}|{do} {x} have)",
        "{which} {be} the size of {x}",
        "{seems} (?:small or large|large or small|small or big|big or small)",
    ),
    "count": (
        "how many {thing}(?: {be}(?: there)?(?: {seen})?| can be seen| (?:do|can) you see| {do} {this} (?:show|have|contain))?",
        "what is the (?:number|count) of {thing}",
    ),
    "tone": ("{seems} (?:brighter or darker|darker or brighter|bright or dark|dark or bright){around}",),
    "is side": ("{be} {x} (?:{lie} )?{at side}", "{do} {x} lie {at side}"),
    "is level": ("{be} {x} (?:{lie} )?{at level}", "{do} {x} lie {at level}"),
    "is place": ("{be} {x} (?:{lie} )?{at place}", "{do} {x} lie {at place}"),
    "is size": ("{seems} {size}", "would you call {x} {size}", "is (?:it|this) {a}{size} {thing}"),
    "is tone": ("{seems} {tone}{around}",),
    "is what": ("is (?:the|this) {abnormality} {a}{named}",),
}
"""Patterns by template, beside its wordings."""


def _pattern(text: str) -> re.Pattern[str]:
    while (told := re.sub(r"\{([\w ]+)\}", lambda match: PARTS.get(match[1], match[0]), text)) != text:
        text = told
    number = count()
    return re.compile(re.sub(r"\{(\w+)\}", lambda match: f"(?P<{match[1]}_{next(number)}>{'|'.join(SLOTS[match[1]])})", text))


@cache
def patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Every template's name with each of its patterns."""
    asked = [(name, wording.removesuffix("?")) for name, template in TEMPLATES.items() for wording in template.wordings]
    heard = [(name, text) for name, texts in HEARD.items() for text in texts]
    return [(name, _pattern(text + TAIL)) for name, text in asked + heard]


def _meaning(template: str, match: re.Match[str]) -> Query:
    slots = ((group.partition("_")[0], word) for group, word in match.groupdict().items() if word is not None)
    return Query(template, **{FIELDS.get(slot, slot): SLOTS[slot][word] for slot, word in slots})


def meanings(question: str) -> set[Query]:
    """All that a question may ask by any pattern, whatever its case, punctuation and blanks; empty for none of ours."""
    text = normal(question)
    return {_meaning(name, match) for name, pattern in patterns() if (match := pattern.fullmatch(text))}


def understand(question: str) -> Query | None:
    """What a question asks; None where that is nothing of ours, or not one thing only."""
    found = meanings(question)
    return found.pop() if len(found) == 1 else None
