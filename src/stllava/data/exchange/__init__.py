"""Others' training data in and ours out: LLaVA JSON, preference sets as they are published, TRL's columns.

`data.turns` reads rows and turns in any of these spellings, `columns` knows where each data set keeps a pair, `incoming` writes
records with a manifest, `outgoing` writes files for LLaVA and TRL.
"""

from stllava.data.exchange.incoming import import_conversations, import_preferences
from stllava.data.exchange.outgoing import chosen_answers, to_llava, to_trl

__all__ = ["chosen_answers", "import_conversations", "import_preferences", "to_llava", "to_trl"]
