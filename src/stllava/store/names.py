"""The names of files in a stage's folder."""

MANIFEST, PLAN, PARTS, LOCK = "manifest.json", "plan.json", "parts", "lock"
CHECK, AUDITED, SEAL = "check.json", "expert-audit.json", "seal.json"
DRAFTS = ".*.draft"
"""Files that are being written."""
AUDIT, EXCHANGES = "audit.jsonl", "exchanges"
"""What left this process and what came back: no part of the output, and kept when that is replaced."""
