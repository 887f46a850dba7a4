"""The model card of an exported policy, from the files of its run alone: what it is, how it is used, what was measured.

It tells no path, address or image of the machine it is written on. Without a run it says that nothing measured is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from stllava.config import QUESTION
from stllava.data.overlap import describe
from stllava.data.sources import source_of
from stllava.recipe import RunOptions
from stllava.records import Manifest, Score
from stllava.report import wording
from stllava.report.comparison_tables import interval_text
from stllava.report.markdown import bullets, plain_text, table_row
from stllava.report.redaction import Secrets, secrets_of
from stllava.report.run_files import RunFiles
from stllava.rundir import BLIND, SFT

LANGUAGE = "language"
"""The label by which benchmarks tell the language of a question."""
NOT_A_DEVICE = "Research software, not a medical device: nothing it says may guide the care of a patient."
LICENSE = "# The license is yours to name here; those of the model and the data that it was made from may bind you."
VLLM = """With vLLM, on images resized as in training:

    vllm serve FOLDER --generation-config vllm --chat-template-content-format openai \\
      --mm-processor-kwargs '{"backend": "pil"}'"""
CODE = """```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder, or its name on the hub
picture = Image.open("image.png").convert("RGB")
question = "What does the image show?"

model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto"{trust}).eval()
processor = AutoProcessor.from_pretrained(folder{trust})
content = [{{"type": "image", "image": picture}}, {{"type": "text", "text": {asked}}}]
messages = [{{"role": "user", "content": content}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device, model.dtype)
said = model.generate(**inputs, max_new_tokens={most})[0, inputs["input_ids"].shape[1] :]
print(processor.decode(said, skip_special_tokens=True).strip())
```"""


@dataclass(frozen=True)
class Measured:
    """A policy of a finished run."""

    run: RunFiles
    policy: str
    """What the run calls it."""


def write_card(measured: Measured | None, *, stage: Manifest | None, custom: bool) -> str:
    """The card as Markdown; `stage` is what made the policy, where that is known, `custom` an architecture of our own."""
    if measured is None:
        secrets = Secrets()
        parts = [_head(None), "# A vision-language model", _made_by(stage), *_use(None, custom=custom), "## Scores"]
        parts += ["No run was named when this folder was made: nothing is known of what was measured."]
        parts += ["## Limits", bullets([NOT_A_DEVICE, "Nothing is known of what it can and cannot do."])]
        made, options = [stage] if stage is not None else [], stage.config if stage is not None else None
    else:
        run, secrets = measured.run, secrets_of(measured.run)
        parts = [_head(secrets.base), f"# {plain_text(secrets.redact(run.outcome.name))}", _origin(measured, secrets.base)]
        parts += [*_use(run.options, custom=custom), "## Data", bullets(secrets.redact(text) for text in _data(run))]
        parts += ["## Scores", *_scores(measured), "## What training has seen of the tests"]
        parts += [bullets(secrets.redact(text) for text in _seen(run)), "## Limits", bullets(_limits(measured))]
        made, options = list(run.manifests.values()), run.options.model_dump()
    if options is not None:
        code = ", ".join(wording.commits(made)) or "not recorded"
        parts += ["## Recipe", f"stllava, commit {code}; device {wording.devices(made)}. All options:"]
        parts.append(_indented(yaml.safe_dump(secrets.redact_all(options), sort_keys=False, allow_unicode=True)))
    return "\n\n".join(parts) + "\n"


def _head(base: str | None) -> str:
    """What the hub reads."""
    known: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["medical", "visual-question-answering", "stllava"],
    }
    if base is not None:
        known["base_model"] = base
    return f"---\n{yaml.safe_dump(known, sort_keys=False)}{LICENSE}\n---"


def _made_by(stage: Manifest | None) -> str:
    if stage is None:
        return "stllava exported it; how it was made is not recorded here."
    dropped = sum(stage.dropped.values())
    return (
        f"The stage `{stage.stage}` of stllava made it: {stage.counts_in:,} items went in, {dropped:,} of them were left out. "
        "What it began with is not recorded here."
    )


def _origin(measured: Measured, base: str | None) -> str:
    run, policy = measured.run, measured.policy
    small = "a small model built from nothing" if run.options.model == "small" else "a model that is not named here"
    begun = f"`{base}`" if base is not None else small
    place = "the policy before any of its rounds" if policy == SFT else f"its policy {wording.policy_label(policy)}"
    chosen = ", which the validation split chose" if policy == run.outcome.best else ""
    return (
        f"A vision-language model that answers questions about {_subject(run.options)}. stllava made it from {begun} in a run "
        "of [self-training](https://arxiv.org/abs/2406.19973): labelled images teach a model to answer and to ask; in every "
        "round it asks itself about unlabelled ones, an expert judges its answers, and it learns from the verdicts. "
        f"This is {plain_text(place)}{chosen}.\n\n**{NOT_A_DEVICE}**"
    )


def _subject(options: RunOptions) -> str:
    return "synthetic phantoms: drawings that resemble radiographs, CT and MR" if _is_phantom(options) else "medical images"


def _is_phantom(options: RunOptions) -> bool:
    return options.data.synthetic


def _use(options: RunOptions | None, *, custom: bool) -> list[str]:
    """How it is asked in plain transformers, in the words and to the length in which it was measured."""
    prompt, most = (
        (options.evaluate.prompt, options.evaluate.sampling.max_new_tokens) if options is not None else (QUESTION, 64)
    )
    asked = "question" if prompt == QUESTION else f"{prompt!r}.replace({QUESTION!r}, question)"
    code = CODE.format(asked=asked, most=most, trust=", trust_remote_code=True" if custom else "")
    strange = "Its architecture is not stock: the folder holds its code, which you must trust to run it. vLLM does not know it."
    return ["## Use", "It needs transformers, torch and Pillow, not stllava.", code, strange if custom else VLLM]


def _data(run: RunFiles) -> list[str]:
    """Where the data came from, how much of it there was, and what became of it."""
    data = run.manifests["data"]
    counts = [f"{wording.plain(name)}: {wording.measure(name, value)}." for name, value in data.measures.items() if value]
    dropped = [f"Left out, {cause}: {count:,}." for cause, count in data.dropped.items()]
    told = tuple(_overlaps(run))
    notes = [note for note in run.outcome.notes if not note.startswith(told)]
    first = source_of(run.options.data).describe(run.options.data)
    return [first, *counts, *dropped, *run.outcome.sentences, *notes]


def _overlaps(run: RunFiles) -> list[str]:
    return [sentence for overlap in run.outcome.overlaps for sentence in describe(overlap)]


def _seen(run: RunFiles) -> list[str]:
    return _overlaps(run) or ["Training and tests were not compared."]


def _scores(measured: Measured) -> list[str]:
    """A table for each benchmark and family of rules, each with the gains over the policy that self-training began with."""
    scores = [one for one in measured.run.outcome.scores if one.policy in _shown(measured)]
    if not scores:
        return ["The run scored nothing."]
    parts = ["Percent, with 95 % intervals resampled by image. A blind policy is one that was shown black images."]
    for benchmark in wording.benchmarks(scores):
        known = [one for one in scores if one.benchmark == benchmark]
        chose = " It chose the policy, so its scores flatter that a little." if benchmark == wording.VALIDATION else ""
        asked = plain_text(measured.run.options.evaluate.template(benchmark))
        parts += [f"### {plain_text(benchmark)}", f"Questions were asked as: {asked}.{chose}"]
        rules = wording.rules(known)[: 1 if benchmark == wording.VALIDATION else None]
        parts += [_table(measured, [one for one in known if one.rule == rule], rule) for rule in rules]
        parts += [text for text in [_gains(measured, benchmark)] if text]
    return parts


def _shown(measured: Measured) -> list[str]:
    """This policy, the one that self-training began with, and their baselines."""
    policies = list(dict.fromkeys([measured.policy, SFT]))
    blind = {BLIND + name for name in policies}
    return policies + [name for name in measured.run.outcome.baselines if not name.startswith(BLIND) or name in blind]


def _table(measured: Measured, scores: Sequence[Score], rule: str) -> str:
    metrics = wording.in_order((one.metric for one in scores), list(wording.METRICS))
    found = {(one.policy, one.metric): one for one in scores}
    lines = [
        table_row([rule or "by rules not recorded", *map(wording.metric_label, metrics)]),
        "|---" * (len(metrics) + 1) + "|",
    ]
    for policy in _shown(measured):
        name = f"this model ({wording.policy_label(policy)})" if policy == measured.policy else wording.policy_label(policy)
        cells = [interval_text(found[policy, metric]) if (policy, metric) in found else "–" for metric in metrics]
        if set(cells) != {"–"}:
            lines.append(table_row([name, *cells]))
    return "\n".join(lines)


def _gains(measured: Measured, benchmark: str) -> str:
    pair = (measured.policy, SFT, benchmark)
    rows = [
        f"{wording.metric_label(row.metric)} {wording.points(row.value)} "
        f"[{wording.points(row.low)}, {wording.points(row.high)}]"
        for row in measured.run.outcome.differences
        if (row.policy, row.against, row.benchmark) == pair and row.metric in wording.CHIEF
    ]
    return f"Paired gains over {SFT} in points: {'; '.join(rows)}." if rows else ""


def _limits(measured: Measured) -> list[str]:
    run, policy = measured.run, measured.policy
    languages = {row.labels.get(LANGUAGE, "") for rows in run.predictions.values() for row in rows.get(policy, ())} - {""}
    limits = [NOT_A_DEVICE]
    if _is_phantom(run.options):
        limits.append("It has seen synthetic phantoms only, in English, and knows nothing of the images of patients.")
    elif languages:
        limits.append(f"It was tested in {', '.join(sorted(languages))}; in other languages it was not measured.")
    else:
        limits.append("The language of the test questions is not recorded; in any other it was not measured.")
    if not any(name.startswith(BLIND) for name in run.outcome.baselines):
        limits.append("How much of its score the question alone gives away, without the image, was not measured.")
    return [
        *limits,
        "Its answers sound the same whether right or wrong.",
        "Measured were greedy answers to single questions about single images. Not measured were other scanners, hospitals "
        "and groups of patients, long conversations, harm, and how sure it is.",
        "The intervals cover the sampling of test images, not the choice of seed, data or benchmark: this is one run.",
    ]


def _indented(text: str) -> str:
    """A block of code that nothing in it can end."""
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
