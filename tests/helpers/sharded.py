"""Trains with FSDP2 on CPUs: accelerate shards models on GPUs alone, and is told here that these are some.

Started in several processes as `python -m helpers.sharded FOLDER`, in place of `python -m stllava.launch FOLDER`. Each leaves a
file parted-RANK in FOLDER once it has ended and left the others.
"""

import atexit
import os
import sys
from pathlib import Path

import torch.distributed
from accelerate import PartialState
from accelerate.utils import DistributedType

from stllava.launch import main

SETTINGS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What examples/accelerate/fsdp2.yaml comes to in a launched process."""


def note_parting(folder: Path) -> None:
    """Say that this process is in no group any more."""
    if not torch.distributed.is_initialized():
        (folder / f"parted-{os.environ['RANK']}").touch()


if __name__ == "__main__":
    atexit.register(note_parting, Path(sys.argv[1]))
    begin = PartialState.__init__

    def as_on_gpus(self: PartialState, *arguments: object, **options: object) -> None:
        begin(self, *arguments, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_on_gpus
    main(Path(sys.argv[1]))
