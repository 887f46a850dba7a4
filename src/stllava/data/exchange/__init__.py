"""Others' training data in and ours out: LLaVA JSON, preference sets as they are published, TRL's columns.

`data.turns` reads rows and turns in any of these spellings, `columns` knows where each data set keeps a pair, `incoming` writes
records with a manifest, `outgoing` writes files for LLaVA and TRL, `trainers` for ms-swift, LLaMA-Factory and verl;
`sample_logs` reads answers that were given elsewhere.
"""

from stllava.data.exchange.incoming import import_conversations, import_preferences
from stllava.data.exchange.outgoing import chosen_answers, to_llava, to_trl
from stllava.data.exchange.trainers import factory_entry, write_conversations, write_preferences

__all__ = [
    "chosen_answers",
    "factory_entry",
    "import_conversations",
    "import_preferences",
    "to_llava",
    "to_trl",
    "write_conversations",
    "write_preferences",
]
