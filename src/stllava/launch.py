"""A training stage in several processes of this machine, one a device, started and awaited by the one that asks for it.

The call is handed over in a file, so that the processes run the same function with the same arguments. An error of any
of them is raised here as it was there, the leading one's first.
"""

import ctypes
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec

import yaml

from stllava.config import LaunchOptions
from stllava.errors import StllavaError
from stllava.progress import place_among_processes
from stllava.stages.results import TrainingResult

P = ParamSpec("P")
CALL, ERROR = "call.pickle", "error"
DIE_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""


def launched(
    launch: LaunchOptions, stage: Callable[P, TrainingResult], *arguments: P.args, **options: P.kwargs
) -> TrainingResult:
    """Call a training stage as `launch` says: here, or in several processes.

    Args:
        launch: How many processes, and how they share the model.
        stage: sft or dpo.
        arguments: Its arguments.
        options: Its keyword arguments.

    Raises:
        StllavaError: As the stage does, or where a process ended otherwise.
    """
    if launch.processes == 1:
        return stage(*arguments, **options)
    if launch.config is not None:
        _refuse_missing_deepspeed(launch.config)
    with TemporaryDirectory(prefix="stllava-launch-") as folder:
        (Path(folder) / CALL).write_bytes(pickle.dumps((launch, stage, arguments, options)))
        done = subprocess.run(command_of(launch, folder), check=False, preexec_fn=_die_with_parent)
        if done.returncode == 0:
            return stage(*arguments, **options)  # It is finished: what it wrote is read.
        if told := sorted(Path(folder).glob(f"{ERROR}-*"), key=_rank):
            error: StllavaError = pickle.loads(told[0].read_bytes())
            raise error
    raise StllavaError(
        f"one of {launch.processes} training processes ended with {done.returncode}",
        expected="processes that train to the end",
        remedy="What it printed stands above; the same command goes on from the last checkpoint.",
    )


def command_of(launch: LaunchOptions, folder: str) -> list[str]:
    """The command that starts the processes."""
    if launch.config is not None:
        starter = ["accelerate.commands.launch", "--config_file", str(launch.config), "--num_processes", str(launch.processes)]
    else:
        starter = ["torch.distributed.run", "--standalone", f"--nproc_per_node={launch.processes}"]
    return [sys.executable, "-m", *starter, "-m", "stllava.launch", folder]


def _refuse_missing_deepspeed(config: Path) -> None:
    """Refuse a configuration of accelerate that asks for DeepSpeed where it is not installed, and a file that is none."""
    try:
        asked: object = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # YAML's dates may be none, its brackets many.
        raise _no_configuration(config, f"cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(asked, dict):
        raise _no_configuration(config, f"holds {type(asked).__name__}")
    if asked.get("distributed_type") == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise StllavaError(
            f"{config} asks for DeepSpeed, which is not installed",
            expected="it, for ZeRO",
            remedy="pip install 'stllava[deepspeed]', or launch with examples/accelerate/fsdp2.yaml.",
        )


def _no_configuration(config: Path, fault: str) -> StllavaError:
    return StllavaError(
        f"{config} {fault}",
        expected="a configuration of accelerate, a YAML mapping",
        remedy="Name one of examples/accelerate, or what `accelerate config` has written.",
    )


def _refuse_other_count(launch: LaunchOptions) -> None:
    """Refuse to train in another number of processes than was asked for: accelerate starts one where it is told of no kind."""
    _, count = place_among_processes()
    if count != launch.processes:
        raise StllavaError(
            f"{launch.processes} training processes were asked for and {count} started by {launch.config or 'torchrun'}",
            expected="as many as launch.processes says",
            remedy="Set distributed_type in launch.config to MULTI_GPU, FSDP or DEEPSPEED; without GPUs, or under MPI, "
            "leave launch.config out.",
        )


def _die_with_parent() -> None:
    """Let the started process end when this one is killed, which could not stop it any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(DIE_WITH_PARENT, signal.SIGTERM)


def main(folder: Path) -> None:
    """Run the call that `launched` wrote to `folder`, in one of its processes."""
    launch, stage, arguments, options = pickle.loads((folder / CALL).read_bytes())
    try:
        _refuse_other_count(launch)
        stage(*arguments, **options)
    except StllavaError as error:
        told = folder / f"{ERROR}-{os.environ.get('RANK', '0')}"
        draft = told.with_name(f"writing-{told.name}")  # The others are ended as soon as one of them has ended.
        draft.write_bytes(pickle.dumps(error))
        draft.rename(told)
        sys.exit(2)


def _rank(told: Path) -> int:
    """Which process wrote an error."""
    return int(told.name.rpartition("-")[2])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    from stllava.training.processes import leave_and_end

    leave_and_end()
