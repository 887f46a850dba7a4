"""Self-questioning: the policy describes each image, then asks about it as the virtual user.

Reads images; writes `questions.jsonl`. Empty, repeated, cut-off and non-questions are dropped and counted by cause.
`request_descriptions` writes the request for a description as a question of its own, for answer, judge and pair: the
best description, as the expert sees it, is then what ask goes on from.
"""

from collections.abc import Sequence
from pathlib import Path

from stllava.config import AskOptions
from stllava.data.folder import read_images
from stllava.data.images import count_missing
from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.metrics.robust import token_f1
from stllava.records import Answers, Image, Judgment, Manifest, Message, Question, Sampling, content_id
from stllava.store import Existing, Stage, locked, output_hash, read_records
from stllava.thoughts import final_answer

MOST_WORDS = 60
MUTE = (
    "A policy learns to ask in sft (self_question_ratio above 0): train it longer there, or lower ask's sampling.temperature "
    "or raise its sampling.max_new_tokens."
)
"""What to do where a policy asks nothing."""


def request_descriptions(
    options: AskOptions, *, policy: Path, images: Path, root: Path, to: Path, seed: int = 0, existing: Existing = "resume"
) -> Manifest:
    """Write the requests for a description of each image, for `policy` to answer; nothing is generated."""
    from stllava.model.load import fingerprint

    with locked(to, policy, images):
        name, pictures = fingerprint(policy), read_images(images, root=root)
        inputs = {"policy": name, "images": content_id([image.path for image in pictures]), "seed": str(seed)}
        stage = Stage("ask", to, options, inputs=inputs, existing=existing)
        if stage.manifest is not None:
            return stage.manifest
        how = Sampling(**options.description_sampling.model_dump(), seed=seed)
        questions = [
            Question(
                id=content_id("question", image.path, text, name),
                images=(image.path,),
                text=text,
                description="",
                policy=name,
                sampling=how,
            )
            for image in pictures
            for text in dict.fromkeys((options.description_prompt, *options.extra_description_prompts))
        ]
        stage.write_records("questions", questions)
        return stage.finish(counts_in=len(questions), counts_out=len(questions))


def best_descriptions(answers: Path, judgments: Path) -> dict[str, str]:
    """The description of each image that scored highest, the one given first of equals; none where there is no verdict."""
    given = {one.id: one for one in read_records(answers, "answers", Answers)}
    best: dict[str, tuple[float, str]] = {}
    for judgment in read_records(judgments, "judgments", Judgment):
        if judgment.scores is not None and judgment.answers_id in given:
            told, score = given[judgment.answers_id], max(judgment.scores)
            if score > best.get(told.images[0], (-1.0, ""))[0]:
                best[told.images[0]] = (score, told.final_answers[judgment.scores.index(score)])
    return {image: text for image, (_, text) in best.items()}


def first_descriptions(answers: Path) -> dict[str, str]:
    """The description of each image that was given first."""
    first: dict[str, str] = {}
    for told in read_records(answers, "answers", Answers):
        first.setdefault(told.images[0], told.final_answers[0])
    return first


def ask(
    options: AskOptions,
    *,
    policy: Path,
    images: Path,
    root: Path,
    to: Path,
    described: Path | None = None,
    verdicts: Path | None = None,
    seed: int = 0,
    existing: Existing = "resume",
) -> Manifest:
    """Let `policy` ask about `images` (a folder, or a list: text, CSV, JSON) under `root`; write questions to `to`.

    `described` and `verdicts` are the folders of answers to requests for a description and of the judgments of
    them: the best is what the policy is said to have told, or the first where no description at all has a verdict; it
    describes itself only images that have none.
    """
    from stllava.generation.decoder import open_sampler
    from stllava.generation.sampler import Prompt, complete_usable, usable
    from stllava.model.load import fingerprint

    if (described is None) is not (verdicts is None):
        given, lacking = ("described", "verdicts") if verdicts is None else ("verdicts", "described")
        raise StllavaError(
            f"{given} without {lacking}",
            expected="answers to requests for a description and the judgments of them, or neither",
            remedy=f"Name {lacking} too, or leave {given} out.",
        )
    with locked(to, policy, images, described, verdicts):
        name, pictures = fingerprint(policy), read_images(images, root=root)
        inputs = {"policy": name, "images": content_id([image.path for image in pictures]), "seed": str(seed)}
        told: dict[str, str] = {}
        if described is not None and verdicts is not None:
            told = best_descriptions(described, verdicts) or first_descriptions(described)
            inputs |= {"described": output_hash(described), "verdicts": output_hash(verdicts)}
        stage = Stage("ask", to, options, inputs=inputs, existing=existing, items="images")
        if stage.manifest is not None:
            return stage.manifest
        missing = count_missing(root, [(image.path,) for image in pictures])
        missing.refuse_faults(items=len(pictures), unit="images", max_bad=options.max_bad)
        sampler = open_sampler(options, policy=policy, root=root, audit=to, revisits=True)
        how = Sampling(**options.sampling.model_dump(), seed=seed)

        def work(chunk: Sequence[Image]) -> tuple[list[Question], Dropped]:
            opening = Message(role="user", content=options.description_prompt)
            seen, prompts, dropped = usable(
                sampler, chunk, lambda image: Prompt((opening,), (image.path,)), outputs=options.questions
            )
            untold = [place for place, image in enumerate(seen) if image.path not in told]
            greedy = (
                options.description_sampling.model_copy(update={"temperature": 0.0}) if told else options.description_sampling
            )
            spoken_of, spoken = complete_usable(
                sampler,
                [seen[place] for place in untold],
                [prompts[place] for place in untold],
                dropped,
                k=1,
                sampling=greedy,
                seed=seed,
                outputs=options.questions,
            )
            new = {image.path: final_answer(one.text) for image, (one,) in zip(spoken_of, spoken, strict=True)}
            seen = [image for image in seen if image.path in told or image.path in new]
            said = [told[image.path] if image.path in told else new[image.path] for image in seen]
            told_of, prompts, unusable = usable(
                sampler,
                list(zip(seen, said, strict=True)),
                lambda one: Prompt((opening, Message(role="assistant", content=one[1])), (one[0].path,), "virtual_user"),
                outputs=options.questions,
            )
            dropped.take(unusable)
            how_many = options.questions
            told_of, asked = complete_usable(
                sampler, told_of, prompts, dropped, k=how_many, sampling=options.sampling, seed=seed, outputs=how_many
            )
            seen, said = [image for image, _ in told_of], [text for _, text in told_of]
            own = [screen([final_answer(one.text) for one in texts], dropped) for texts in asked]
            kept = []
            for image, description, texts in zip(seen, said, lend(own, said, most=options.borrow_questions), strict=True):
                for text in texts:
                    key = content_id("question", image.path, text, name)
                    kept.append(
                        Question(id=key, images=(image.path,), text=text, description=description, policy=name, sampling=how)
                    )
            return kept, dropped

        questions, dropped = stage.map_chunks(
            pictures, work, kind=Question, size=options.chunk, unit="images", max_bad=options.max_bad, remedy=MUTE
        )
        stage.write_records("questions", questions)
        asked = len(pictures) * options.questions
        mute = () if questions else (f"None of so few questions can be used, and answer has nothing to answer. {MUTE}",)
        return stage.finish(
            counts_in=len(questions) + dropped.total(),
            counts_out=len(questions),
            dropped=dropped,
            measures={
                "images": float(len(pictures)),
                "borrowed": float(len(questions) + dropped.total() - asked),
                "kept_share": len(questions) / (len(questions) + dropped.total()) if pictures else 0.0,
                "distinct_share": len({question.text for question in questions}) / len(questions) if questions else 0.0,
            },
            notes=(*sampler.notes, *mute),
            device=sampler.device,
        )


def lend(own: Sequence[Sequence[str]], descriptions: Sequence[str], *, most: int) -> list[list[str]]:
    """Each image's own questions, and so many of other images', first those of the images whose description is most alike.

    A question that was asked about one cyst suits the next one: what a policy hardly ever asks of its own accord is what
    it is taught least about.
    """
    if not most:
        return [list(texts) for texts in own]
    lent = []
    for place, texts in enumerate(own):
        alike = [token_f1(descriptions[place], [description]) for description in descriptions]
        order = sorted(range(len(own)), key=lambda other: (-alike[other], (other - place) % len(own)))
        known = {_bare(text) for text in texts}
        bank: dict[str, str] = {}
        for text in (text for other in order for text in own[other]):
            if _bare(text) not in known:
                bank.setdefault(_bare(text), text)
        lent.append([*texts, *list(bank.values())[:most]])
    return lent


def screen(texts: Sequence[str], dropped: Dropped) -> list[str]:
    """The usable questions among `texts`, each once; the others are counted by cause in `dropped`."""
    kept: dict[str, str] = {}
    for text in texts:
        key = _bare(text)
        if not key:
            dropped.drop("empty")
        elif not key.endswith("?") or len(key.split()) < 2:
            dropped.drop("not a question", repr(text))
        elif len(key.split()) > MOST_WORDS:
            dropped.drop("too long", repr(text))
        elif key in kept:
            dropped.drop("repeated", repr(text))
        else:
            kept[key] = text
    return list(kept.values())


def _bare(text: str) -> str:
    return " ".join(text.lower().split())
