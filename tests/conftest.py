"""What the tests share: a tiny model, a few phantoms, one thread, no network."""

import os
import socket
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: a second thread costs more than it gives, and far more beside others

import pytest
from hypothesis import settings

from stllava.config import GroupRates, SftOptions, SmallModel
from stllava.data.sources import PhantomData

# The same examples every time: a change is judged by what it does, not by luck.
settings.register_profile("stllava", derandomize=True, deadline=None)
settings.load_profile("stllava")

TINY = SmallModel(
    image_size=32,
    patch_size=16,
    vision_width=32,
    vision_layers=1,
    language_width=32,
    language_layers=2,
    heads=2,
    vocabulary=400,
    context=512,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails; servers of a test's own listen on the loopback."""

    connect = socket.socket.connect

    def refuse(self: socket.socket, address: str | tuple[str, int]) -> None:
        # Processes of one machine speak through AF_UNIX: multiprocessing's forkserver does.
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError("a test reached for the network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of phantoms: 6 labelled, 4 unlabelled, 3 for validation, 3 for the test."""
    from stllava.data.prepare import prepare

    folder = tmp_path_factory.mktemp("phantoms")
    prepare(PhantomData(labelled=6, unlabelled=4, validation=3, test=3, size=64), seed=7, to=folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """The folder of an untrained LLaVA of some 50,000 parameters."""
    from stllava.model.small import build_small

    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_small(TINY, conversations=phantoms / "conversations.jsonl", to=folder, seed=3)
    return folder


def teach(conversations: Path, images: Path, *, to: Path, epochs: int = 60) -> Path:
    """A tiny LLaVA that has learned, in a few seconds, to ask as the conversations do and to answer somehow."""
    from stllava.model.small import build_small
    from stllava.stages.sft import sft

    build_small(TINY, conversations=conversations, to=to / "start", seed=3)
    rate = GroupRates(language=3e-3, projector=3e-3, vision=3e-3)
    options = SftOptions(epochs=epochs, batch_size=4, save_steps=0, learning_rate=rate)
    sft(options, model=str(to / "start"), conversations=conversations, images=images, to=to / "model")
    return to / "model"
