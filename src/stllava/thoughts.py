"""Where a model that thinks aloud ends thinking, by the marks of many families. Pure; linear in the length of the text."""

import re

_TAGS = r"(?:\w{1,8}:)?(?:think|thinking|thoughts?|reasoning|analysis|reflection|scratchpad)"
_THOUGHTS = (
    (rf"<{_TAGS}(?:\s[^<>]{{0,80}})?>", rf"</{_TAGS}\s?>"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|channel>", r"<channel\|>"),  # Gemma 4
    ("<unused94>", "<unused95>"),  # MedGemma
)
"""Where thoughts begin and end. A template may have written the beginning into the prompt, but no template the end."""
_THOUGHT = re.compile(
    "|".join(f"(?P<open_{n}>{begin})|(?P<close_{n}>{end})" for n, (begin, end) in enumerate(_THOUGHTS)), re.IGNORECASE
)
_MARK_BEGINS = re.compile(r"[<\[◁]")
"""What each mark begins with: where nothing does, as in most texts, no mark need be looked for."""
_THOUGHT_MARKS = 1_000
_BARE = re.compile(r"\s*analysis(?=[A-Z])")
_BARE_FINAL = "assistantfinal"
"""What is left of Harmony where a server takes its marks away."""
_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
"""OpenAI's Harmony: only what stands in the last channel, if that is `final`, is said."""


def without_thought(text: str) -> str | None:
    """A reply behind what its model thought aloud; None where a thought has no end."""
    depths: dict[str, int] = {}
    end = 0
    for count, mark in enumerate(_THOUGHT.finditer(text) if _MARK_BEGINS.search(text) else ()):
        if count == _THOUGHT_MARKS:
            return None
        step, _, kind = (mark.lastgroup or "").partition("_")
        depths[kind] = max(0, depths.get(kind, 0) + (1 if step == "open" else -1))
        end = mark.end() if step == "close" else end
    if any(depths.values()):
        return None
    said = text[end:]
    _, channel, rest = said.rpartition(_CHANNEL)
    if channel:
        name, message, said = rest.partition(_MESSAGE)
        return said if message and name.strip().startswith("final") else None
    if _BARE.match(said) is not None:
        _, final, said = said.rpartition(_BARE_FINAL)
        return said if final else None
    return said


def final_answer(text: str) -> str:
    """What a policy says behind what it thought aloud; nothing where its thought has no end."""
    said = without_thought(text)
    return said.strip() if said is not None else ""
