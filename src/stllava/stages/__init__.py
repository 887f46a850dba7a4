"""What a run does, a file for each: from records on disk to records on disk.

The loop is `sft`, then in every round `ask`, `answer`, `judge`, `pair` and `dpo`; `calibrate` asks what is known and audits an
expert by it, `image_gain` measures how much an image speaks for an answer, `distill` makes a judge of verdicts, `final_data`
gathers what was found right for one more sft. `evaluate` scores each policy, `baselines` what sees no image, `rescore` stored
answers again and `score_log` answers given elsewhere, all by `scored_predictions`; by `lmms_eval_tasks` lmms-eval does so.
`predict` and `export` put a policy to use, `convert_dataset` a run's pairs.
`results` types what they come to, `judgments` has what judge writes, `speaking` what those in which a policy speaks share.
"""
