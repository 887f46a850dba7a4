"""The seven stages: sft, ask, answer, judge, pair, dpo, evaluate. Each goes from records on disk to records on disk."""
