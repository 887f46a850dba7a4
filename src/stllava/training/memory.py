"""What memory a training takes, by calculation: its own code run once on tensors that have shapes and no values.

A model of any size is built so in moments, from its configuration alone. An optimizer step (forwards, backwards, AdamW) then
goes through the very functions that a training calls, and every storage that PyTorch would allocate is counted while it
lives. `measure_training` does the same step with values, to see whether the calculation is right.
"""

import ctypes
import gc
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerBase

from stllava.config import DpoOptions, GenerationOptions, LearningLoad, TrainingOptions
from stllava.data.turns import conversation
from stllava.errors import StllavaError
from stllava.model.adapters import load_learner, optimizer_groups, prepare_model, quantisable
from stllava.model.checkpoint import check_way, read_config, reading
from stllava.model.device import best_device, native_bfloat16
from stllava.model.load import Policy
from stllava.model.processor import POLICY, load_processor
from stllava.records import Conversation, Lineage, Message, Preference
from stllava.training.host_memory import M_MMAP_THRESHOLD
from stllava.training.lean_layers import layers_that_learn
from stllava.training.preference_dataset import PreferenceDataset
from stllava.training.sft_dataset import SftDataset
from stllava.tree.forward import collate, split_into_forwards, token_log_probabilities

Batch = dict[str, Tensor]
NF4_BYTES = 0.5 + 0.016
"""Of a weight in NF4 with double quantisation: its code, and its share of what scales a block."""
WORDS = 64
"""Of which the length of a word in tokens is taken."""
CLEAR_REFS = Path("/proc/self/clear_refs")
ADAM_MOMENTS = 2
"""Tensors that AdamW keeps of each weight that learns, in its precision."""


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of a training at its peak, in bytes."""

    parameters: int
    """Number of weights of the model, without adapters."""
    learned: int
    """Number of weights that learn."""
    gradients: int
    """Bytes of the gradients."""
    optimizer: int
    """Bytes of AdamW's moments."""
    weights: int
    """Bytes of all weights."""
    peak: int
    """Bytes held at once, at most."""

    @property
    def activations(self) -> int:
        """Bytes of what is kept of a forward, and of intermediate results, at the peak."""
        return self.peak - self.weights - self.gradients - self.optimizer


class StorageLedger(TorchDispatchMode):
    """Counts the bytes of all storages that tensors of a computation have, while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self._sizes: dict[int, int] = {}

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, function: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        """Call an operation and count what it makes."""
        if function is torch.ops.aten._unique2.default and isinstance(args[0], FakeTensor):
            # How many differ hangs on values: of the places of learned tokens, all but a few.
            result: object = (args[0].clone(), args[0].new_empty(0), args[0].new_empty(0))
        else:
            result = function(*args, **(kwargs or {}))
        for one in tree_iter(result):
            if isinstance(one, Tensor):
                self.count(one)
        return result


def predict_training(path: Path | str, options: TrainingOptions, load: LearningLoad, work: Path) -> TrainingMemory:
    """Calculate the memory of a training of the model in a folder, or of that name on the hub, without its weights.

    Args:
        path: The model; of its folder only configuration and processor are read.
        options: Of sft or dpo: what learns, batch size, tokens of a forward, precision.
        load: What there is to learn about an image.
        work: An empty folder for blank images.

    Raises:
        StllavaError: Where the model cannot learn, or nothing of this load fits into its context.
    """
    device = best_device()
    dtype = torch.bfloat16 if native_bfloat16(device) and options.precision != "float32" else torch.float32
    plain = options.model_copy(update={"lora": options.lora.model_copy(update={"quantise": "none"})})
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _without_checks_of_values():
        policy = _outline(path, dtype)
        saved = _saved_by_quantising(policy, options)
        parameters = policy.model.num_parameters()
        model = prepare_model(policy.model, plain).train()
        _without_values(model, fake, device)
        forwards = forwards_of_a_step(policy, options, load, work)
        # Where spans begin and end is read by Python.
        shapes = [
            {name: value if name == "spans" else fake.from_tensor(value) for name, value in batch.items()} for batch in forwards
        ]
        ledger = StorageLedger()
        for tensor in (*model.parameters(), *model.buffers()):
            ledger.count(tensor)
        weights = ledger.live
        with fake, ledger:
            held = _two_steps(policy, model, plain, shapes)
    return TrainingMemory(parameters, *held, weights=weights - saved, peak=ledger.peak - saved)


def _outline(path: Path | str, dtype: torch.dtype) -> Policy:
    """A policy whose weights have neither values nor a device."""
    with reading(path, expected=POLICY):
        check_way(path)
        config = read_config(path)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        return Policy(model.eval(), load_processor(path, config))


def _without_values(model: nn.Module, fake: FakeTensorMode, device: torch.device) -> None:
    """Put a model on a device without its values: what it computes has shapes, and storages that only seem to be there."""
    made: dict[int, Tensor] = {}

    def outline(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            shape = tensor.data if tensor.is_meta else tensor.data.to("meta")
            made[id(tensor)] = FakeTensor(fake, shape, device)
            if isinstance(tensor, nn.Parameter):
                made[id(tensor)] = nn.Parameter(made[id(tensor)], requires_grad=tensor.requires_grad)
        return made[id(tensor)]

    keep = []  # So that no id is given twice.
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    keep.append(tensor)
                    tensors[name] = outline(tensor)  # type: ignore[assignment]


def predict_generation(path: Path | str, options: GenerationOptions) -> int:
    """Calculate the bytes that speaking takes at most: the weights, and a full cache of keys and values."""
    device = best_device()
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    model = _outline(path, dtype).model
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    weights = {id(one): one.nbytes for one in (*model.parameters(), *model.buffers())}
    cached = 2 * text.num_hidden_layers * heads * width * dtype.itemsize
    return sum(weights.values()) + int(options.max_cache_tokens * cached)


def measure_training(path: Path | str, options: TrainingOptions, load: LearningLoad, work: Path) -> TrainingMemory:
    """Load the model, take two optimizer steps on made-up data and return the memory that the device then had held at most.

    On a CPU that is what this process has grown by, so it should have imported what it needs and nothing else should run in it.

    Args:
        path: The model, with its weights.
        options: Of sft or dpo.
        load: What there is to learn about an image.
        work: An empty folder for blank images.
    """
    with _peak_of_device() as peak:
        policy = load_learner(path, options)
        parameters = policy.model.num_parameters()
        model = prepare_model(policy.model, options).train()
        weights = sum(one.nbytes for one in (*model.parameters(), *model.buffers()))
        held = _two_steps(policy, model, options, forwards_of_a_step(policy, options, load, work))
    return TrainingMemory(parameters, *held, weights=weights, peak=peak())


def memory_of_device() -> int:
    """Bytes of memory that the device has: a GPU's own, else the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(best_device()).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def forwards_of_a_step(policy: Policy, options: TrainingOptions, load: LearningLoad, work: Path) -> list[Batch]:
    """The two largest forwards of an optimizer step on blank images and made-up words, the largest first."""
    names = [f"{index}.png" for index in range(options.batch_size)]
    for name in names:
        Image.new("RGB", (load.image_size, load.image_size)).save(work / name)
    most = min(policy.context, options.max_tokens_per_forward)
    if isinstance(options, DpoOptions):
        pairs = [pair for name in names for pair in _pairs(policy.tokenizer, name, load)]
        trees = list(PreferenceDataset(policy, pairs, images=work, max_tokens=most).trees)
        if options.image_conditional:
            trees += trees
    else:
        talks = [talk for name in names for talk in _conversations(policy.tokenizer, name, load)]
        dataset = SftDataset(policy, talks, images=work, self_question_ratio=0.0, seed=0, max_tokens=most)
        trees = [dataset.tree(index, 0) for index in range(len(dataset.groups))]
    parts = split_into_forwards(policy, trees, most=options.max_tokens_per_forward)
    batches = [collate(policy, [trees[index] for index in part]) for part in parts]
    policy.forget()
    return sorted(batches, key=lambda batch: -batch["input_ids"].numel())[:2]


def _conversations(tokenizer: PreTrainedTokenizerBase, image: str, load: LearningLoad) -> list[Conversation]:
    """Every question about an image with an answer."""
    return [
        conversation(
            (image,),
            (
                Message(role="user", content=_words(tokenizer, load.question_tokens, 2 * number)),
                Message(role="assistant", content=_words(tokenizer, load.answer_tokens, 2 * number + 1)),
            ),
        )
        for number in range(load.questions)
    ]


def _pairs(tokenizer: PreTrainedTokenizerBase, image: str, load: LearningLoad) -> list[Preference]:
    """Every question about an image with its answers, one of which is chosen against each of the others."""
    made: list[Preference] = []
    for number in range(load.questions):
        question = Message(role="user", content=_words(tokenizer, load.question_tokens, number))
        chosen, *others = [_words(tokenizer, load.answer_tokens, answer) for answer in range(max(2, load.answers))]
        for rejected in others:
            name = f"{image}-{len(made)}"
            made.append(
                Preference(
                    id=name,
                    images=(image,),
                    prompt=(question,),
                    chosen=chosen,
                    rejected=rejected,
                    margin=1.0,
                    lineage=Lineage(question_id=name, answers_id=name, judgment_id=name),
                )
            )
    return made


def _words(tokenizer: PreTrainedTokenizerBase, tokens: int, number: int) -> str:
    """A text of about so many tokens that differs from that of another number."""
    start = str(number)
    rest = tokens - len(tokenizer(start, add_special_tokens=False)["input_ids"])
    a_word = len(tokenizer(" a" * WORDS, add_special_tokens=False)["input_ids"]) / WORDS
    return start + " a" * max(1, round(rest / a_word))


def _two_steps(policy: Policy, model: nn.Module, options: TrainingOptions, forwards: Sequence[Batch]) -> tuple[int, int, int]:
    """Take two optimizer steps; returns how many weights learn, and the bytes of gradients and of moments."""
    half = options.precision == "bfloat16" or (options.precision == "auto" and native_bfloat16(policy.device))
    optimizer = torch.optim.AdamW(cast(Any, optimizer_groups(model, options)), fused=True)
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with layers_that_learn(policy.model, options):
        for batches in (forwards[:1], forwards):
            for batch in batches:
                moved = {name: value if name == "spans" else value.to(policy.device) for name, value in batch.items()}
                with torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=half):
                    # The losses of sft and dpo are sums of these, and no larger.
                    loss = -token_log_probabilities(model, moved).sum()
                loss.backward()
                del loss
            nn.utils.clip_grad_norm_(learns, options.max_grad_norm or 1.0)
            optimizer.step()
            optimizer.zero_grad()
    held = sum(one.nbytes for one in learns)
    return sum(one.numel() for one in learns), held, ADAM_MOMENTS * held


def _saved_by_quantising(policy: Policy, options: TrainingOptions) -> int:
    """Bytes by which linear layers in 4 bits are smaller: those that do not learn in full, but the projector's and the head."""
    if options.lora.quantise == "none":
        return 0
    return round(sum(one.weight.nbytes - NF4_BYTES * one.weight.numel() for one in quantisable(policy.model, options).values()))


@contextmanager
def _without_checks_of_values() -> Iterator[None]:
    """Let transformers not compare the number of image tokens with that of features, which only values tell."""
    name = "TRANSFORMERS_DISABLE_TORCH_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _peak_of_device() -> Iterator[Callable[[], int]]:
    """Yields what tells the most bytes that were held beyond those held now: on the GPU, else in this process's memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - start
        return
    if not CLEAR_REFS.exists():
        raise StllavaError(
            "this system does not tell a process's largest size",
            expected="Linux, or a GPU",
            remedy="Leave --try out: the calculation needs neither.",
        )
    # Else glibc keeps what is freed in pieces of up to 32 MB, a quarter more than tensors hold.
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    libc.malloc_trim(0)
    CLEAR_REFS.write_text("5", encoding="utf-8")  # Forgets the peak.
    start = _resident("VmRSS")
    yield lambda: _resident("VmHWM") - start


def _resident(name: str) -> int:
    """A figure of this process's memory in bytes, from Linux."""
    lines = (CLEAR_REFS.parent / "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
