"""The disk: JSONL files, manifests, resume and locks. No other package knows the layout of a stage's folder.

A stage's folder while it is written:

    plan.json                what is being made: stage, options, input hashes
    parts/<chunk id>.jsonl   finished chunks: one line of counts, then the records
    lock                     held by the one process that writes

    audit.jsonl              images that were sent out, where they went and when
    exchanges/<name>.jsonl   what an expert replied, word for word

    shards/<i>-of-<n>/       the same of one shard, where the work is cut (`shards.py`)

and when it is whole: `<name>.jsonl` (or the files of a policy) and, written last, `manifest.json`.
Every file appears whole or not at all (written beside, synced, renamed), so a kill or a full disk loses at most
the chunk at work.
"""

from stllava.store.begun import Existing, first_difference
from stllava.store.chunked import (
    HOPELESS,
    ChunkWork,
    Executor,
    InProcess,
    MappedChunks,
    Named,
    executing,
    executor,
    finished_chunk,
    nothing_left,
)
from stllava.store.disk import disk_error, disk_errors, file_hash, remove_folder, require_file, write_whole
from stllava.store.finished import (
    ChunkHead,
    ChunkRecords,
    CurvePoint,
    FinishedChunk,
    Outlook,
    chunk_id,
    is_sealed,
    read_chunk,
    seal,
    write_chunk,
)
from stllava.store.jsonl import IndexedRecords, RecordStream, read_jsonl, read_record, to_jsonl
from stllava.store.lock import locked
from stllava.store.log import Log
from stllava.store.manifests import (
    Plan,
    commit,
    first_loss,
    index_records,
    output_hash,
    read_formatted,
    read_manifest,
    read_plan,
    read_records,
    stream_records,
    versions,
    warn_of_losses,
)
from stllava.store.names import AUDIT, AUDITED, CALL, CHECK, CURVES, EXCHANGES, LOCK, MANIFEST, OUTLOOK, PARTS, PLAN, SHARDS
from stllava.store.shards import (
    SHARD,
    Gathered,
    Shard,
    ShardRows,
    StageCall,
    from_shards,
    gathered_now,
    in_chunks,
    not_in_shards,
    planned_shard,
    shares_out,
)
from stllava.store.stage import Input, Inputs, Stage, begin_shard, open_stage, shard_folder

__all__ = [
    "AUDIT",
    "AUDITED",
    "CALL",
    "CHECK",
    "CURVES",
    "EXCHANGES",
    "HOPELESS",
    "LOCK",
    "MANIFEST",
    "OUTLOOK",
    "PARTS",
    "PLAN",
    "SHARD",
    "SHARDS",
    "ChunkHead",
    "ChunkRecords",
    "ChunkWork",
    "CurvePoint",
    "Executor",
    "Existing",
    "FinishedChunk",
    "Gathered",
    "InProcess",
    "IndexedRecords",
    "Input",
    "Inputs",
    "Log",
    "MappedChunks",
    "Named",
    "Outlook",
    "Plan",
    "RecordStream",
    "Shard",
    "ShardRows",
    "Stage",
    "StageCall",
    "begin_shard",
    "chunk_id",
    "commit",
    "disk_error",
    "disk_errors",
    "executing",
    "executor",
    "file_hash",
    "finished_chunk",
    "first_difference",
    "first_loss",
    "from_shards",
    "gathered_now",
    "in_chunks",
    "index_records",
    "is_sealed",
    "locked",
    "not_in_shards",
    "nothing_left",
    "open_stage",
    "output_hash",
    "planned_shard",
    "read_chunk",
    "read_formatted",
    "read_jsonl",
    "read_manifest",
    "read_plan",
    "read_record",
    "read_records",
    "remove_folder",
    "require_file",
    "seal",
    "shard_folder",
    "shares_out",
    "stream_records",
    "to_jsonl",
    "versions",
    "warn_of_losses",
    "write_chunk",
    "write_whole",
]
