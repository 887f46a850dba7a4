"""Stage 2: learning from preferences.

Reads a policy, preferences and, for replay, the conversations of stage 1; writes the next policy. The reference is
the starting policy: its log-probabilities are those it noted as it answered, or else computed once before the first
step, and written to `references.jsonl`.
"""

from array import array
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from stllava.config import DpoOptions
from stllava.data.conversations import read_conversations
from stllava.data.images import count_missing
from stllava.errors import StllavaError
from stllava.experts.judged_answers import Asked, asked, hash_of, questions_judged
from stllava.records import Conversation, Preference
from stllava.stages.results import TrainingResult
from stllava.store import (
    PARTS,
    Existing,
    IndexedRecords,
    Input,
    Inputs,
    file_hash,
    index_records,
    open_stage,
    output_hash,
    read_manifest,
)


def dpo(
    options: DpoOptions,
    *,
    policy: Path,
    preferences: Path,
    images: Path,
    to: Path,
    earlier: Sequence[Path] = (),
    answers: Sequence[Path] = (),
    judgments: Sequence[Path] = (),
    conversations: Path | None = None,
    seed: int = 0,
    existing: Existing = "resume",
) -> TrainingResult:
    """Teach a policy preferences about images (stage 2) and write the policy that comes of it.

    The loss is DPO on the pairs, plus the negative log-likelihood of the chosen answers, plus that of replayed
    conversations of stage 1.

    Args:
        options: The loss and its weights, rates, batch size and adapters.
        policy: Folder of the policy that learns; it is also the reference.
        preferences: Folder of the preferences.
        images: The image root: every image path is relative to it.
        to: Folder for the new policy.
        earlier: Folders of preferences to learn beside them, the oldest first, such as those of earlier rounds: of the same
            question about the same images only the pairs of the latest folder count, those that an expert's verdict made
            before those of the policy's own vote.
        answers: Folders of answers of these rounds; needed with `judgments` only.
        judgments: Folders of the judgments of these answers, in the same order: a question on which an expert gave a verdict is
            learned from no pair of the policy's own vote (judge.consensus), even where the verdict made no pair.
        conversations: What sft learned, to be replayed; needed unless `replay` is 0.
        seed: Seed of what is drawn at random; the same seed gives the same output.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where more than `max_bad` of the pairs cannot be learned from.
        CollapseError: Where chosen answers die out or the ranking flips.
    """
    from stllava.model.adapters import load_learner
    from stllava.model.load import fingerprint
    from stllava.training.preference_dataset import PreferenceDataset
    from stllava.training.preference_steps import PreferenceSteps, fit_preferences
    from stllava.training.processes import TrainedPolicy, run_training
    from stllava.training.references import measure_reference
    from stllava.training.sft_dataset import SftDataset
    from stllava.training.trainer import without_dropout
    from stllava.tree.guard import check_packing

    if options.replay > 0 and options.replay_images > 0 and conversations is None:
        raise StllavaError(
            "dpo is to replay stage-1 conversations and has none",
            expected="--conversations",
            remedy="Name the file that sft learned from, or set replay to 0.",
        )
    replayed = conversations if options.replay > 0 and options.replay_images > 0 else None
    inputs: Inputs = {
        "policy": Input(policy, fingerprint),
        "preferences": Input(preferences, output_hash),
    }
    inputs |= {"seed": str(seed)} | {
        f"earlier {number}": Input(folder, output_hash) for number, folder in enumerate(earlier, 1)
    }
    inputs |= {"conversations": Input(replayed, file_hash)} if replayed is not None else {}
    if len(answers) != len(judgments):
        raise StllavaError(
            f"{len(answers)} folders of answers and {len(judgments)} of judgments",
            expected="a folder of judgments for each folder of answers",
            remedy="Name both of every round, in the same order.",
        )
    refuse_other_groups(options.loss, [*earlier, preferences])
    for name, folders in (("answers", answers), ("judgments", judgments)):
        inputs |= {f"{name} {number}": Input(folder, output_hash) for number, folder in enumerate(folders, 1)}

    def learn(hashes: Mapping[str, str]) -> TrainedPolicy:
        weights = hashes["policy"]
        read: list[Conversation] = read_conversations(replayed, root=images)[0] if replayed is not None else []
        judged = questions_judged(list(zip(answers, judgments, strict=True)))
        pairs = latest([*earlier, preferences], judged=judged)
        missing = count_missing(images, (pair.images for pair in pairs))
        missing.refuse_faults(items=len(pairs), unit="pairs", max_bad=options.max_bad)
        loaded = load_learner(policy, options)
        without_dropout(loaded.model)
        device = str(loaded.device)
        loaded.packs = options.pack
        most = min(loaded.context, options.max_tokens_per_forward)
        replay = (
            SftDataset(loaded, read, images=images, self_question_ratio=options.self_question_ratio, seed=seed, max_tokens=most)
            if read
            else None
        )
        dataset = PreferenceDataset(
            loaded,
            pairs,
            images=images,
            max_tokens=options.max_tokens_per_forward,
            image_conditional=options.image_conditional > 0,
        )
        dataset.dropped.refuse_faults(items=len(pairs), unit="pairs", max_bad=options.max_bad)
        unpacked = check_packing(loaded, dataset.trees)
        # The reference is what training starts from: in 4 bits that is not quite the policy that gave the answers.
        start = weights if options.lora.quantise == "none" else f"{weights} in {options.lora.quantise}"
        references = measure_reference(dataset, loaded, weights=start)
        steps = PreferenceSteps(loaded, dataset, references, replay, options, seed)
        curves = fit_preferences(steps, to / PARTS / "training")
        return TrainedPolicy(
            loaded,
            counts_in=len(pairs),
            counts_out=len(pairs) - dataset.dropped.total(),
            dropped=dataset.dropped,
            measures={"images": float(len(dataset)), "replayed_images": float(len(replay.groups) if replay else 0)},
            curves=curves,
            notes=[*([unpacked] if unpacked else []), references.note],
            device=device,
            records={"references": references.records(dataset)},
        )

    opened = open_stage("dpo", to, options, inputs=inputs, reads=(conversations,), existing=existing)
    return TrainingResult(to, run_training(opened, learn))


def refuse_other_groups(loss: str, folders: Sequence[Path]) -> None:
    """Refuse pairs that were not made for the loss: groups with another loss, or the loss group with pairs that are none.

    Raises:
        StllavaError: Where that is so.
    """
    for folder in folders:
        in_groups = read_manifest(folder).config.get("pairs") == "group"
        if in_groups != (loss == "group"):
            raise StllavaError(
                f"the pairs in {folder} are {'groups' if in_groups else 'no groups'}, and the loss is {loss}",
                expected="pairs that `pair --pairs group` made with the loss group, and no others with it",
                remedy="Set loss to group." if in_groups else "Pair again with --pairs group, or choose another loss.",
            )


def latest(folders: Sequence[Path], *, judged: Collection[Asked] = ()) -> IndexedRecords[Preference]:
    """The pairs of all folders; of those that ask the same about the same images only the last folder's.

    A pair that the policy's own vote made never stands where an expert's verdict made one, in whichever folder, or where one
    is known (`judged`). Of pairs of questions about the same images, too, only the last folder's count: what is informative
    changes as the policy learns. All pairs are gone through once, and only where there are own votes once more. Of a question
    about images 16 bytes are held, and its pairs are read when they are asked for.
    """
    rounds = index_records(folders, "preferences", Preference)
    places: dict[bytes, int] = {}
    place_of, folder_of, own_votes = array("q"), array("q"), array("q")
    for number, pair in enumerate(rounds):
        place_of.append(places.setdefault(hash_of(*_asked(pair)), len(places)))
        folder_of.append(rounds.file_of(number))
        if pair.lineage.own_vote:
            own_votes.append(number)
    if not rounds:
        return rounds
    place, folder = (np.frombuffer(row, dtype=np.int64) for row in (place_of, folder_of))
    stands = np.ones(len(rounds), dtype=bool)
    if own_votes:
        settled = set(judged) | {_question(pair) for pair in rounds if not pair.lineage.own_vote}
        stands[[number for number in own_votes if _question(rounds[number]) in settled]] = False
    numbers = np.flatnonzero(stands)
    first, last_folder = np.full(len(places), len(rounds)), np.zeros(len(places), dtype=np.int64)
    np.minimum.at(first, place[numbers], numbers)
    np.maximum.at(last_folder, place[numbers], folder[numbers])
    kept = numbers[folder[numbers] == last_folder[place[numbers]]]
    return rounds.rearranged(kept[np.argsort(first[place[kept]], kind="stable")])


def _question(pair: Preference) -> Asked:
    """What a pair asks, in whatever letters."""
    return asked(*_asked(pair))


def _asked(pair: Preference) -> tuple[tuple[str, ...], str]:
    """What a pair is about: images and a question, or, of pairs of questions, who asks."""
    return pair.images, pair.prompt[-1].content if pair.speaker == "assistant" else pair.speaker
