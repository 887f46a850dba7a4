"""What a policy's own votes are worth, alone and beside an expert that errs, on the answers of a finished run with references.

    python bench/votes.py RUN [--round 1] [--questions 4000]

Nothing is trained or asked: the references of the run's data are the truth, and an expert made of them is wrong on purpose.
Questions about one half of the images are the labelled ones, those about the other half are measured. Prints three tables: how
often the winner is right by agreement; what the expert `itself` judges at several precisions; and how many chosen answers are
wrong under an expert with errors, with and without `pair.min_confidence` as an audit of 400 labelled questions sets it, and
with and without the verdicts in other wordings of a question (`pair.pool_paraphrases`).
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from stllava.config import ItselfOptions, PairOptions, SimulatedOptions
from stllava.data.benchmarks.own import read_samples
from stllava.experts.answer_pairs import pairs_of
from stllava.experts.confidence import paraphrases_among
from stllava.experts.expert import Verdict
from stllava.experts.rules.fallible import FallibleJudge
from stllava.experts.rules.itself import ItselfJudge, is_right, labelled_votes, thresholds_of, winner_of
from stllava.experts.rules.reference import ReferenceJudge
from stllava.records import Answers, Judgment, Sample, content_id
from stllava.rundir import RunDir, round_name
from stllava.stages.calibrate import audit_of, with_errors
from stllava.store import read_records

LABELLED = 400
EXPERTS = (
    SimulatedOptions(of="reference", wrong=0.15),
    SimulatedOptions(of="reference", wrong=0.3),
    SimulatedOptions(of="reference", wrong=0.1, confuses={"glioma": "meningioma"}),
)
Known = tuple[Answers, Verdict]


def agreements(known: Sequence[Known]) -> Iterator[str]:
    """How often the winner is right, by the share of answers that say it."""
    asked, right = Counter[float](), Counter[float]()
    for answers, truth in known:
        winner = winner_of(answers)
        if winner is not None:
            asked[winner.agreement] += 1
            right[winner.agreement] += is_right(answers, truth) is True
    for share in sorted(asked):
        yield f"| {share:.3f} | {asked[share]} | {right[share] / asked[share]:.1%} |"


def verdicts_of_itself(labelled: Sequence[Known], known: Sequence[Known], labels: ReferenceJudge) -> Iterator[str]:
    """What the expert itself judges of `known`, calibrated by `labelled`."""
    for precision in (0.7, 0.8, 0.9, 0.95):
        votes = labelled_votes([answers for answers, _ in labelled], labels)
        judge = ItselfJudge(thresholds_of(votes, options=ItselfOptions(min_precision=precision)))
        made = [(row, said) for row, said in ((row, judge.judge(row[0])) for row in known) if said.scores is not None]
        wrong = [not is_right(*row) for row, _ in made]
        split = [not is_right(*row) for row, said in made if said.scores is not None and 0.0 in said.scores]
        shares = [f"{sum(errors) / len(errors):.1%}" if errors else "–" for errors in (wrong, split)]
        yield f"| {precision} | {len(made) / len(known):.1%} | {shares[0]} | {len(split) / len(known):.1%} | {shares[1]} |"


def chosen_answers(labelled: Sequence[Known], known: Sequence[Known], samples: Sequence[Sample]) -> Iterator[str]:
    """How many pairs come of an expert with errors, and in how many of them the chosen answer is wrong."""
    for faults in EXPERTS:
        judge = FallibleJudge(faults, samples)
        told = [(answers, judged(judge, answers), truth.scores or ()) for answers, truth in labelled[:LABELLED]]
        audit = audit_of([row for row in told if row[1].scores is not None], options=PairOptions(), expert=judge.name)
        verdicts = [(answers, judged(judge, answers)) for answers, _ in known]
        for confidence, pooled in ((0.0, False), *product((0.7, 0.8, 0.9), (False, True))):
            options = PairOptions(min_confidence=confidence, pool_paraphrases=pooled)
            options = with_errors(options, audit)
            paraphrases = paraphrases_among(verdicts, options=options)
            wrong: list[bool] = []
            for (answers, truth), (_, verdict) in zip(known, verdicts, strict=True):
                scores = dict(zip(answers.completions, truth.scores or (), strict=True))
                pairs = pairs_of(answers, verdict, options=options, paraphrases=paraphrases)
                wrong += [scores[pair.chosen] < 0.5 for pair in ([] if isinstance(pairs, str) else pairs)]
            share = sum(wrong) / max(1, len(wrong))
            yield f"| {judge.name} | {confidence} | {'yes' if pooled else 'no'} | {len(wrong)} | {share:.1%} |"


def judged(judge: FallibleJudge, answers: Answers) -> Judgment:
    """The expert's verdict as a judgment."""
    said = judge.judge(answers)
    key = content_id("judgment", answers.id, judge.name)
    return Judgment(
        id=key, answers_id=answers.id, scores=said.scores, cause=said.cause, reason="", expert=judge.name, prompt_hash=""
    )


def main() -> None:
    """Read a run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--questions", type=int, default=4000)
    options = parser.parse_args()
    folder = RunDir(options.run)
    samples = read_samples(folder.data / "references.jsonl")[0]
    labels = ReferenceJudge(samples)
    given = read_records(folder.stage(round_name(options.round), "answer"), "answers", Answers)
    # All that was asked about some of the images: what one question was told counts for others about the same image.
    sampled = sorted(given, key=lambda answers: content_id("votes", list(answers.images)))[: options.questions]
    known = [row for row in ((answers, labels.judge(answers)) for answers in sampled) if row[1].scores is not None]
    halves: tuple[list[Known], list[Known]] = ([], [])
    for row in known:
        halves[int(content_id("half", list(row[0].images)), 16) % 2].append(row)
    print(f"{len(known)} questions\n\n| agreement | questions | winner right |\n|---|---|---|")
    print("\n".join(agreements(known)))
    print("\n| min_precision | judged | of these wrong | judged, answers differ | of these wrong |\n|---|---|---|---|---|")
    print("\n".join(verdicts_of_itself(halves[0][:LABELLED], halves[1], labels)))
    print("\n| expert | min_confidence | pooled | pairs | chosen answer wrong |\n|---|---|---|---|---|")
    print("\n".join(chosen_answers(*halves, samples)))


if __name__ == "__main__":
    main()
