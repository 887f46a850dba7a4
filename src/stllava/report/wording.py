"""Numbers and names as the report writes them, and the sentences it makes of them."""

from collections.abc import Iterable, Sequence

from stllava.records import Difference, ItemsCheck, JudgeCheck, Manifest, Outcome, Rate, Score, VotesCheck
from stllava.rundir import BLIND, ROUND, SFT

VALIDATION = "validation"
UNIT = "\u00a0%"
VERBS = {"better": "rose", "worse": "fell", "level": "did not measurably change"}

METRICS = {
    "open_exact_match": ("Open exact match", "free-text answers equal to the reference"),
    "closed_accuracy": ("Closed accuracy", "yes/no and choice questions answered right"),
    "open_recall": ("Open recall", "share of the reference’s words found in free-text answers"),
    "open_medical_match": ("Open medical match", "free-text answers equal to the reference once medical spellings are one"),
    "open_f1": ("Open F1", "harmonic mean of word recall and word precision of free-text answers"),
    "llava_med_closed": ("Closed, published", "“Closed” of the paper: yes/no answers in which the reference’s letters occur"),
    "llava_med_closed_batch": ("Closed, published batch script", "the same without the condition that yes or no occurs"),
    "llava_med_open_recall": ("Open recall, published", "“Open” of the paper: repeated words count again"),
    "llava_med_open_precision": ("Open precision, published", "share of an answer’s words that the reference has"),
    "llava_med_open_f1": ("Open F1, published", "harmonic mean of the published recall and precision"),
    "llava_med_open_exact_match": ("Open “exact match”, published", "the reference’s words found, per word of the answer"),
    "llava_med_open_bleu_1": ("Open BLEU-1, published", "unsmoothed share of single words, with a brevity penalty"),
    "llava_med_open_accuracy": ("Open accuracy, published", "answers nearest to the right one of the training set’s answers"),
}
"""Label and meaning of each metric, the headline metric first."""

RATES = frozenset({"open_semantic", "panel_agreement", "true_error", "true_error_low", "true_error_high", "wrong"})
"""Stages' figures that are shares although their names do not say so; agreements called kappa are none."""

HEADLINES = ("open_exact_match", "closed_accuracy", "open_recall")
"""The metrics of the tiles at the head of the page."""
CHIEF = (*HEADLINES, "llava_med_closed", "llava_med_open_recall")
"""The metrics that get a chart, in the order of the tables: the headlines, and what the paper calls Closed and Open."""

FAMILIES = {
    "robust": "our rules: words are words, negation is read, what cannot be read counts as wrong and is counted",
    "expert": "an expert compared every open answer with its reference, not knowing which was which; identical ones are right",
    "llava_med": "the published definitions of LLaVA-Med v1.0.0, quirks kept: for comparison with printed numbers only",
}
"""What each family of rules is, by the name before its version."""

CURVES = {
    "loss": "Loss",
    "reward_accuracy": "Reward accuracy",
    "reward_margin": "Reward margin",
    "chosen_logp": "Log-probability of the chosen answer",
    "rejected_logp": "Log-probability of the rejected answer",
}
"""Label of each curve, in the order they are drawn; others follow by name."""


def metric_label(metric: str) -> str:
    """A metric's name for readers."""
    return METRICS[metric][0] if metric in METRICS else plain(metric)


def policy_label(policy: str) -> str:
    """round-1 becomes round 1 and blind-sft blind sft, kept on one line; other names stay."""
    return policy.replace(ROUND, "round\u00a0").replace(BLIND, "blind\u00a0")


def plain(name: str) -> str:
    """A snake_case name as words."""
    words = name.replace("_", " ").replace("-", " ").strip()
    return words[:1].upper() + words[1:]


def percent(value: float) -> str:
    """A share in percent, one decimal, without the sign."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, always signed."""
    text = f"{100 * value:+.1f}"
    return text[1:] if text in ("+0.0", "-0.0") else text.replace("-", "−")


def measure(name: str, value: float) -> str:
    """A stage's figure: scores, shares and rates in percent, whole numbers whole, the rest to four digits."""
    if name in METRICS or name in RATES or (0 <= value <= 1 and any(word in name for word in ("share", "rate", "accuracy"))):
        return f"{percent(value)}{UNIT}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds as a reader says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def in_order(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """The distinct names, known ones first and in their order, the others by name."""
    found = set(names)
    return [name for name in known if name in found] + sorted(found - set(known))


def p_value(value: float) -> str:
    """A p-value as readers expect it."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def family(rule: str) -> str:
    """The name of a family of rules without its version."""
    return rule.partition("-")[0]


def rules(scores: Sequence[Score]) -> list[str]:
    """The rules by which scores were made, in the order of the families."""
    order = list(FAMILIES)
    return sorted({score.rule for score in scores}, key=lambda rule: (order.index(family(rule)) if rule else 0, rule))


def benchmarks(scores: Sequence[Score]) -> list[str]:
    """Names of the benchmarks in the order scored, the validation split last."""
    return sorted(dict.fromkeys(score.benchmark for score in scores), key=lambda name: name == VALIDATION)


def judge_gain(difference: Difference) -> str:
    """better, worse or level: what the interval of a paired difference allows one to say."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "level"


def challenger(outcome: Outcome) -> str:
    """The policy whose gain over sft is the headline: the best, or the last one when none beat sft."""
    return outcome.best if outcome.best != SFT else outcome.policies[-1]


def headline(outcome: Outcome) -> list[Difference]:
    """The challenger's paired differences on the first benchmark, the headline metric first."""
    names = benchmarks(outcome.scores)
    rows = [
        row
        for row in outcome.differences
        if names
        and (row.benchmark, row.policy, row.against) == (names[0], challenger(outcome), SFT)
        and row.metric in HEADLINES
    ]
    return sorted(rows, key=lambda row: HEADLINES.index(row.metric))


def score_of(outcome: Outcome, policy: str, benchmark: str, metric: str) -> Score | None:
    """One score, or None where it was not taken."""
    for score in outcome.scores:
        if (score.policy, score.benchmark, score.metric) == (policy, benchmark, metric):
            return score
    return None


def summary(outcome: Outcome, rounds: int) -> str:
    """What the run came to: one paragraph made from its numbers alone."""
    tried = f"{rounds} {'round' if rounds == 1 else 'rounds'} of self-training"
    text = (
        f"After {tried} the validation split chose {policy_label(outcome.best)}."
        if outcome.best != SFT
        else f"{tried} ran without a policy that beats sft on the validation split."
    )
    rows = headline(outcome)
    if not rows:
        return f"{text} No later policy was measured against the sft policy, so there is no gain to report."
    first, *others = rows
    split = "validation split" if first.benchmark == VALIDATION else f"held-out benchmark {first.benchmark}"
    before = score_of(outcome, first.against, first.benchmark, first.metric)
    after = score_of(outcome, first.policy, first.benchmark, first.metric)
    span = f" from {percent(before.value)} to {percent(after.value)}{UNIT}" if before and after else ""
    text += (
        f" On the {split}, {policy_label(first.policy)} compared with sft: {metric_label(first.metric).lower()} "
        f"{VERBS[judge_gain(first)]}{span}, a difference of {points(first.value)} points (95{UNIT} interval of the paired "
        f"difference {points(first.low)} to {points(first.high)}, n = {first.n:,})."
    )
    clauses = [
        f"{metric_label(row.metric).lower()} {VERBS[judge_gain(row)]}, "
        f"{points(row.value)} points ({points(row.low)} to {points(row.high)}, n = {row.n:,})"
        for row in others
    ]
    rest = "; ".join(clauses)
    return text + (f" {rest[:1].upper()}{rest[1:]}." if rest else "")


def devices(manifests: Iterable[Manifest]) -> str:
    """Where the stages ran, each place once."""
    return ", ".join(dict.fromkeys(manifest.device for manifest in manifests))


def commits(manifests: Iterable[Manifest]) -> list[str]:
    """The commits the stages ran from, each once and shortened; `+changes` marks a checkout with uncommitted changes."""
    parts = [manifest.commit.partition("+") for manifest in manifests if manifest.commit]
    return list(dict.fromkeys(f"{name[:10]}{plus}{mark}" for name, plus, mark in parts))


def check_rows(check: JudgeCheck) -> list[tuple[str, Rate | None]]:
    """What a check of an expert found, each with what it is."""
    rows: list[tuple[str, Rate | None]] = [
        ("flips: the other order made the other answer win", check.flips),
        ("the answer shown first wins (0.5 is fair)", check.first_wins),
        ("same outcome when asked again", check.repeats),
        ("the longer answer wins", check.longer_wins),
    ]
    if check.truth:
        rows += [
            ("the longer answer wins, adjusted by the truth (0.5 is fair)", check.longer_wins_adjusted),
            (f"agreement with {check.truth}, Cohen's kappa", check.agreement),
        ]
    return rows


def votes_rows(check: VotesCheck) -> list[tuple[str, Rate | None]]:
    """What readers' votes say of an expert and of each other, each with what it is."""
    return [
        ("the expert is wrong (what readers disagree with, less their own errors)", check.expert_error),
        ("a reader is wrong (from tasks that two read)", check.reader_error),
        ("readers disagree with the expert before they see its verdict", check.disagreed),
        *((f"the same of {row.verdicts:,} {row.stratum} verdicts", row.disagreed) for row in check.strata),
        ("readers overturn the expert once they have seen its reason", check.overturned),
        ("errors that would matter clinically, of those overturned", check.significant),
        ("questions that are no good", check.bad_questions),
        ("questions about an image that is no good", check.bad_images),
        ("agreement of readers with the expert, Cohen's kappa", check.with_expert),
        ("agreement between readers, Krippendorff's alpha", check.between_readers),
        *((f"{reader.reader} says the same when asked again", reader.same_again) for reader in check.readers),
    ]


def votes_sentence(check: VotesCheck) -> str:
    """Who read how much, and how quickly."""
    return _read_by(check, "verdicts")


def items_rows(check: ItemsCheck) -> list[tuple[str, Rate | None]]:
    """What readers' votes say of answers and of the rules that score them, or of questions, each with what it is."""
    good = {
        "predictions": "answers that are right, of those that readers can tell",
        "questions": "questions that are valid, of those that readers can tell",
        "pictures": "pictures in which no text is left, of those that readers can tell",
    }
    rows: list[tuple[str, Rate | None]] = [(good[check.kind], check.good)]
    rows += [(f"{check.kind} of which readers say: {choice}", rate) for choice, rate in check.shares.items()]
    for row in check.rules:
        about = row.rule if row.questions == "all" else f"{row.rule}, {row.questions} questions"
        rows += [
            (f"agreement of readers with {about}, Cohen's kappa", row.agreement),
            (f"readers say what {about} says", row.same),
            (f"right by {about}", row.rule_right),
            ("right by readers, of the same", row.readers_right),
        ]
    rows += [("agreement between readers, Krippendorff's alpha", check.between_readers)]
    return rows + [(f"{reader.reader} says the same when asked again", reader.same_again) for reader in check.readers]


def items_sentence(check: ItemsCheck) -> str:
    """Who read how many answers, questions or pictures, and how quickly."""
    return _read_by(check, check.kind)


def _read_by(check: VotesCheck | ItemsCheck, drawn: str) -> str:
    """Who read how many of the things that were drawn, and how quickly."""
    readers = ", ".join(f"{reader.reader} ({reader.votes})" for reader in check.readers)
    told = f"Of {check.tasks:,} {drawn} drawn, {check.read:,} were read by {readers}"
    seconds = f", in {check.median_seconds:.1f} seconds each (median)" if check.median_seconds is not None else ""
    typed = f" Readers typed the right answer to {check.corrected:,}." if check.corrected else ""
    return f"{told}{seconds}.{typed}"
