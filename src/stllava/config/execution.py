"""Options of where the chunks of a run's stages are worked on."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from stllava.config.base import Options


class ExecutionOptions(Options):
    """Who works on the chunks of ask, answer, evaluate and of a judge that is a model here (local, distilled) in a run."""

    kind: Literal["local", "ray"] = "local"
    """local: processes on this machine; ray: actors on the machines of a Ray cluster (the extra `ray`)."""
    workers: PositiveInt = 1
    """Number of them, each of which holds the model once; a single local one is this process itself."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 1.0
    """GPUs that each of them has to itself, where there are any; a part of one with Ray only."""
    address: str = ""
    """Address of the Ray cluster, such as auto or ray-head:6379; empty: one is started here for the run."""

    @model_validator(mode="after")
    def _processes_share_no_gpu(self) -> "ExecutionOptions":
        if self.kind == "local" and not self.gpus_per_worker.is_integer():
            raise ValueError("a whole number of gpus_per_worker with kind local")
        if self.kind == "local" and self.address:
            raise ValueError("kind ray with an address")
        return self
