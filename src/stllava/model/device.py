"""The device that models are put on, found without loading any of transformers."""

import os

import torch


def best_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found if found is not None else torch.device("cpu")


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively; CPUs are taken not to."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def describe_device(device: torch.device) -> str:
    """The device in words: its kind, the name of the chip where torch knows it, and the memory it has."""
    if device.type == "cuda":
        chip = torch.cuda.get_device_properties(device)
        return f"cuda ({chip.name}, {chip.total_memory / 2**30:.0f} GiB)"
    return device.type if device.type != "cpu" else f"cpu ({torch.get_num_threads()} threads)"


def visible_gpus() -> list[str]:
    """The names, by which CUDA_VISIBLE_DEVICES calls them, of the CUDA devices that this process sees."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def empty_cache() -> None:
    """Give back the accelerator's memory that nothing holds any more."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
