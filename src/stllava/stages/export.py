"""A policy to give away: a plain transformers folder that needs no stllava, with a model card of how it was made and measured.

Reads the folder of a policy, or a run, whose best policy it takes. Writes configuration, safetensors under the names
that published checkpoints have, processor, chat template, `generation_config.json` (greedy) and the card, `README.md`.

    stllava export runs/mine --to my-model
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stllava.config import Options
from stllava.errors import StllavaError
from stllava.report.model_card import Measured, write_card
from stllava.report.run_files import read_run_files
from stllava.rundir import RunDir
from stllava.stages.results import StageResult
from stllava.store import MANIFEST, Existing, Input, Inputs, file_hash, open_stage, read_manifest, write_whole

if TYPE_CHECKING:
    from stllava.model.load import Policy

CARD = "README.md"
Precision = Literal["same", "float32", "bfloat16"]


class ExportOptions(Options):
    """How a policy is written."""

    precision: Precision = "same"
    """Of the weights; same: as they are."""


def export(
    policy: Path, *, to: Path, run: Path | None = None, precision: Precision = "same", existing: Existing = "resume"
) -> StageResult:
    """Write `policy` to the folder `to`, with a card of what `run`, which made it, measured.

    Where `policy` is itself the directory of a run, its best policy is taken.

    Args:
        policy: Folder of the policy, or a finished run, whose best policy is taken.
        to: The new folder.
        run: The run that made the policy: the card then says how, and what was measured.
        precision: Of the weights; same leaves them as they are.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where the policy or the run cannot be read, or the folder holds something else.
    """
    from stllava.model.load import fingerprint, load_policy

    measured = measured_of(policy, run)
    run = policy if RunDir(policy).outcome.is_file() else run
    source = RunDir(run).policy(measured.policy) if run is not None and measured is not None else policy
    inputs: Inputs = {"policy": Input(source, fingerprint)}
    inputs |= {"run": Input(RunDir(run).outcome, file_hash)} if run is not None else {}
    options = ExportOptions(precision=precision)
    with open_stage("export", to, options, inputs=inputs, reads=(policy, run), existing=existing) as stage:
        if stage.manifest is not None:
            return StageResult(to, stage.manifest)
        loaded = load_policy(source, dtype="auto" if precision == "same" else precision)
        make_plain(loaded)
        loaded.save(to)
        made_by = read_manifest(source) if (source / MANIFEST).is_file() else None
        custom = "auto_map" in json.loads((to / "config.json").read_bytes())
        write_whole(to / CARD, write_card(measured, stage=made_by, custom=custom))
        parameters = float(sum(parameter.numel() for parameter in loaded.model.parameters()))
        manifest = stage.finish(counts_in=1, counts_out=1, measures={"parameters": parameters}, device=str(loaded.device))
        return StageResult(to, manifest)


def make_plain(policy: "Policy") -> None:
    """Let the policy be saved as published checkpoints are: their names of weights, greedy decoding, every end of a turn.

    transformers saves a model under the names that it was read with. Of a CLIP tower that was built from its configuration
    they lack the level `vision_model`, without which vLLM does not find them.
    """
    from transformers import GenerationConfig
    from transformers.conversion_mapping import get_model_conversion_mapping

    policy.model._weight_conversions = get_model_conversion_mapping(policy.model, add_legacy=False)  # type: ignore[assignment]
    policy.model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=sorted(policy.stop_ids),
        pad_token_id=policy.tokenizer.pad_token_id,
        bos_token_id=policy.tokenizer.bos_token_id,
    )


def measured_of(policy: Path, run: Path | None) -> Measured | None:
    """What a run measured of a policy, which may be the run itself; None where no run is named."""
    run = policy if RunDir(policy).outcome.is_file() else run
    return None if run is None else _measured(policy, run)


def _measured(policy: Path, run: Path) -> Measured:
    """The run's policy that has the weights of `policy`, which may be the run itself; another one is refused."""
    from stllava.model.load import fingerprint

    files = read_run_files(run)
    if policy == run:
        return Measured(files, files.outcome.best)
    weights = fingerprint(policy)
    for name in files.outcome.policies:
        if fingerprint(RunDir(run).policy(name)) == weights:
            return Measured(files, name)
    raise StllavaError(
        f"{policy} is none of the policies of {run}",
        expected=f"the weights of one of {', '.join(files.outcome.policies)}",
        remedy="Name the run that made it, or none: its card then says that nothing was measured.",
    )
