"""Every record that crosses a stage border: frozen, strict, one JSON line each on disk.

An `id` is the hash of the content that makes the record what it is (`content_id`), never a count or a path of this
machine, so the same work gives the same ids wherever and however often it runs. Images are POSIX paths relative to
the image root of their data set; pixels are never embedded.

In the order of the loop: `dialogue` (images, turns, labelled conversations), `question` (what a policy asks and answers),
`verdict` (what judges say), `reader_votes` (what people say of that) and `review_items` (of answers and questions one by
one), `gain` (how much an image speaks for an answer), `preference` (pairs), `scores` (benchmarks, predictions, scores),
`overlaps` (what training has seen of a benchmark), `outcome` (manifests and the end of a run).
"""

from stllava.records.dialogue import Conversation, Image, Message, Role
from stllava.records.gain import ImageGain
from stllava.records.outcome import Manifest, Outcome, asked_about
from stllava.records.overlaps import FingerprintRow, Match, MatchKind, Overlap
from stllava.records.preference import ConversationLineage, Lineage, Preference, QuestionParaphrase, Reference
from stllava.records.question import Answers, Question, Sampling
from stllava.records.reader_votes import (
    ItemChoice,
    Preferred,
    ReaderSpeed,
    ReviewTask,
    ReviewVote,
    Stratum,
    StratumVotes,
    StruckSentence,
    VoteChoice,
    VotesCheck,
)
from stllava.records.record import FORMAT, Keyed, Record, content_id
from stllava.records.review_items import ItemKind, ItemsCheck, ItemTask, RuleAgreement
from stllava.records.scores import MAX_CHOICES, Difference, Prediction, QuestionKind, Sample, Score
from stllava.records.verdict import (
    AuditedKind,
    AuditedTopic,
    Comparison,
    Context,
    DistilledCheck,
    ExpertAudit,
    Flip,
    JudgeCheck,
    Judgment,
    Rate,
    VerdictCause,
    Vote,
)

__all__ = [
    "FORMAT",
    "MAX_CHOICES",
    "Answers",
    "AuditedKind",
    "AuditedTopic",
    "Comparison",
    "Context",
    "Conversation",
    "ConversationLineage",
    "Difference",
    "DistilledCheck",
    "ExpertAudit",
    "FingerprintRow",
    "Flip",
    "Image",
    "ImageGain",
    "ItemChoice",
    "ItemKind",
    "ItemTask",
    "ItemsCheck",
    "JudgeCheck",
    "Judgment",
    "Keyed",
    "Lineage",
    "Manifest",
    "Match",
    "MatchKind",
    "Message",
    "Outcome",
    "Overlap",
    "Prediction",
    "Preference",
    "Preferred",
    "Question",
    "QuestionKind",
    "QuestionParaphrase",
    "Rate",
    "ReaderSpeed",
    "Record",
    "Reference",
    "ReviewTask",
    "ReviewVote",
    "Role",
    "RuleAgreement",
    "Sample",
    "Sampling",
    "Score",
    "Stratum",
    "StratumVotes",
    "StruckSentence",
    "VerdictCause",
    "Vote",
    "VoteChoice",
    "VotesCheck",
    "asked_about",
    "content_id",
]
