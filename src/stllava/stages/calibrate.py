"""Labelled questions for the policy to answer, by which an expert is calibrated.

Reads samples with known answers; writes `questions.jsonl`, which `answer` reads like those that a policy asked.
"""

from pathlib import Path

from stllava.config import JudgeOptions
from stllava.data.benchmarks.own import read_samples
from stllava.data.borrowing import bare
from stllava.experts.rules.reference import ReferenceJudge
from stllava.records import Question, Sampling, content_id
from stllava.stages.results import AskResult
from stllava.store import Existing, Input, Inputs, file_hash, open_stage

NOT_SAMPLED = Sampling(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=0, seed=0)
"""Nobody sampled the words of a labelled question."""


def ask_labelled(options: JudgeOptions, *, samples: Path, to: Path, number: int, existing: Existing = "resume") -> AskResult:
    """Write questions with known answers into `to`: `number` of them at most, chosen by chance, each once.

    Multiple-choice questions and those whose known answers disagree are left out.

    Args:
        options: The expert that is calibrated.
        samples: JSONL of samples: questions with known answers.
        to: Folder for the questions (questions.jsonl).
        number: Maximum number of questions.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
    """
    inputs: Inputs = {"samples": Input(samples, file_hash), "number": str(number)}
    with open_stage("calibrate", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return AskResult(to, stage.manifest)
        given = read_samples(samples)[0]
        labels = ReferenceJudge(given)
        fit = {
            (row.image, bare(row.question)): row
            for row in given
            if not row.choices and labels.objection(row.question, (row.image,)) is None
        }
        chosen = sorted(fit.values(), key=lambda row: content_id("calibrate", row.image, row.question))[:number]
        questions = [
            Question(
                id=content_id("question", row.image, row.question, "labels"),
                images=(row.image,),
                text=row.question,
                description="",
                policy="labels",
                sampling=NOT_SAMPLED,
            )
            for row in chosen
        ]
        stage.write_records("questions", questions)
        return AskResult(to, stage.finish(counts_in=len(given), counts_out=len(questions)))
