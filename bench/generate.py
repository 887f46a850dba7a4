"""Texts per second: stllava's trees against the plain way, and against a vLLM server.

    python bench/generate.py --load self-asking --images 16
    python bench/generate.py --load slake --images 96
    python bench/generate.py --load self-asking --vllm /path/to/venv/bin/python

The same randomly initialised LLaVA and images of noise for all sides. Loads: `self-asking`, of each image 1 description
(greedy, 48 tokens), 5 questions (24 tokens) and 2 answers to each (48 tokens), sampled at temperature 1; `slake`, 11
questions an image and a 12th about every 19th, greedy answers of 8 tokens, which is 1,061 answers about 96 images.
Weights are random, so texts seldom end before their last token.

- ours: `LocalSampler.complete`, as ask, answer and evaluate call it.
- plain: transformers' `generate`, one call a text, the image processed and encoded in each: what the original does. It is
  timed on the first `--plain-images` images only, for it takes as long for every other one.
- vllm: `EndpointSampler` against a server on the same machine, started by this script with the given Python (where
  vllm is installed) with prefix caching; starting and a warm-up are not timed.

Sides run one after the other, each in a process of its own, after a warm-up on one image. Writes
bench/results/generate-LOAD-DEVICE.json and prints a table.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from shared.llava import MODELS, SHAPES, build, noise, text
from shared.measure import (
    Figures,
    as_json,
    device_kind,
    finish_device,
    forget_peak,
    peak_memory,
    report_side,
    run_side,
    spread,
    write_result,
)

if TYPE_CHECKING:
    from stllava.config import SamplingOptions
    from stllava.generation.sampler import Completion, Prompt, Sampler
    from stllava.model.load import Policy

PORT = 8765
START_SECONDS = 600
DESCRIBE = "Describe the image."
QUESTIONS, ANSWERS = 5, 2
SLAKE_QUESTIONS, SLAKE_EXTRA = 11, 19


@dataclass(frozen=True)
class Setting:
    """What is compared."""

    load: str
    model: str
    images: int
    plain_images: int
    tokens: int
    """Most tokens in our cache at once."""
    concurrency: int
    """Requests the server gets at once."""


def sampled(tokens: int) -> "SamplingOptions":
    """Temperature 1, from all tokens."""
    from stllava.config import SamplingOptions

    return SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=tokens)


def greedy(tokens: int) -> "SamplingOptions":
    """The likeliest token."""
    from stllava.config import SamplingOptions

    return SamplingOptions(temperature=0.0, max_new_tokens=tokens)


def prepare(work: Path, setting: Setting) -> Figures:
    """Write the model, the images of noise and the questions about them to `work`."""
    shape = SHAPES["llava"]
    policy = build(setting.model, shape)
    policy.save(work / "model")
    names = noise(work / "images", count=setting.images, size=shape.image_size)
    draw = random.Random(2)
    asked = {
        name: [text(policy.tokenizer, 8, draw) for _ in range(SLAKE_QUESTIONS + (index % SLAKE_EXTRA == 0))]
        for index, name in enumerate(names)
    }
    (work / "questions.json").write_text(json.dumps(asked))
    return {"parameters": float(policy.model.num_parameters())}


def prompts(asked: Sequence[tuple[str, str]]) -> "list[Prompt]":
    """Questions about images as prompts."""
    from stllava.generation.sampler import Prompt
    from stllava.records import Message

    return [Prompt((Message(role="user", content=said),), (name,)) for name, said in asked]


def ask_and_answer(open_one: "Callable[[], Sampler]", names: Sequence[str]) -> int:
    """Describe, ask and answer as the stages do, answer with a sampler of its own; returns the number of texts."""
    from stllava.generation.sampler import Prompt
    from stllava.records import Message

    sampler = open_one()
    described = sampler.complete(prompts([(name, DESCRIBE) for name in names]), k=1, sampling=greedy(48), seed=0)
    opening = Message(role="user", content=DESCRIBE)
    turns = [
        Prompt((opening, Message(role="assistant", content=said.text)), (name,), speaker="virtual_user")
        for name, (said,) in zip(names, described, strict=True)
    ]
    asked = sampler.complete(turns, k=QUESTIONS, sampling=sampled(24), seed=0)
    questions = [(name, said.text or "what?") for name, several in zip(names, asked, strict=True) for said in several]
    answered = open_one().complete(prompts(questions), k=ANSWERS, sampling=sampled(48), seed=0)
    return len(described) + len(questions) + sum(map(len, answered))


def evaluate(sampler: "Sampler", asked: dict[str, list[str]]) -> int:
    """Answer all questions shortly; returns the number of texts."""
    flat = [(name, said) for name, several in asked.items() for said in several]
    return len(sampler.complete(prompts(flat), k=1, sampling=greedy(8), seed=0))


class Plain:
    """The plain way: one call of generate a text."""

    device = "as ours"
    notes: tuple[str, ...] = ()

    def __init__(self, policy: "Policy", root: Path) -> None:
        from stllava.generation.local_sampler import LocalSampler

        self.policy, self.tokens = policy, LocalSampler(policy, root=root, tokens=1)

    def close(self) -> None:
        """Nothing outlives it."""

    def check(self, prompt: "Prompt") -> None:
        """All images here can be used."""

    def complete(
        self, prompts: "Sequence[Prompt]", *, k: int, sampling: "SamplingOptions", seed: int
    ) -> "list[tuple[Completion, ...]]":
        """Process the image and generate, K times for every prompt."""
        from stllava.generation.sampler import Completion

        return [tuple(Completion(self.one(prompt, sampling)) for _ in range(k)) for prompt in prompts]

    def one(self, prompt: "Prompt", sampling: "SamplingOptions") -> str:
        """One text."""
        import torch

        self.policy.forget()
        asked = self.tokens.request(prompt)
        encoded = self.policy.encode(asked.prefix)
        ids = torch.tensor([[*encoded.ids, *asked.ids]], device=self.policy.device)
        chosen = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampling.temperature else {}
        with torch.inference_mode():
            out: torch.Tensor = self.policy.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=sampling.temperature > 0,
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=self.policy.tokenizer.pad_token_id,
                **chosen,
                **self.policy.join([encoded]),
            )
        return str(self.policy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


@contextmanager
def served(python: str, model: Path) -> Iterator[str]:
    """A vLLM server of the model on this machine; yields its address."""
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "policy"]
    command += ["--host", "127.0.0.1", "--port", str(PORT), "--max-model-len", "2048", "--enable-prefix-caching"]
    command += ["--disable-uvicorn-access-log", "--generation-config", "vllm", "--chat-template-content-format", "openai"]
    command += ["--mm-processor-kwargs", '{"backend": "pil"}']
    if device_kind() == "cpu":
        command += ["--dtype", "float32", "--enforce-eager"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "4"}
    with (model.parent / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(f"http://127.0.0.1:{PORT}/health"):
                if server.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"the server did not start:\n{tail(model.parent / 'server.log')}")
                time.sleep(1)
            yield f"http://127.0.0.1:{PORT}/v1"
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait()
            else:
                print(f"the server ended with {server.returncode}:\n{tail(model.parent / 'server.log')}", file=sys.stderr)


def tail(log: Path) -> str:
    """The last words of a log."""
    return log.read_text()[-12000:]


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def side(name: str, setting: Setting, work: Path) -> Figures:
    """Load, warm up on one image, then measure."""
    from stllava.config import EndpointOptions
    from stllava.generation.endpoint import EndpointSampler
    from stllava.generation.local_sampler import LocalSampler
    from stllava.model.load import load_policy

    asked: dict[str, list[str]] = json.loads((work / "questions.json").read_text())
    names = list(asked)[: setting.plain_images if name == "plain" else setting.images]
    root = work / "images"
    if name.startswith("http"):
        options = EndpointOptions(url=name, model="policy", send_images=True, concurrency=setting.concurrency)
    else:
        policy = load_policy(work / "model")

    def open_one() -> "Sampler":
        if name.startswith("http"):
            return EndpointSampler(options, root=root)
        if name == "plain":
            return Plain(policy, root)
        return LocalSampler(policy, root=root, tokens=setting.tokens, revisits=True)

    def load(chosen: Sequence[str]) -> int:
        texts = {name: asked[name] for name in chosen}
        return ask_and_answer(open_one, chosen) if setting.load == "self-asking" else evaluate(open_one(), texts)

    load(names[-1:])
    before = forget_peak()
    began = time.perf_counter()
    texts = load(names)
    finish_device()
    seconds = time.perf_counter() - began
    return {
        "texts": float(texts),
        "images": float(len(names)),
        "seconds": seconds,
        "texts_per_second": texts / seconds,
        "added_bytes": float(peak_memory() - before),
    }


def compare(setting: Setting, vllm: str | None, repeats: int) -> dict[str, JsonValue]:
    """Run all sides in turn, `repeats` times."""
    runs: dict[str, list[Figures]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory(prefix="stllava-bench-") as folder:
        work = Path(folder)
        common = ["--work", folder, "--setting", json.dumps(asdict(setting))]
        made = run_side(__file__, "--side", "prepare", *common)
        for _ in range(repeats):
            for name in runs:
                runs[name].append(run_side(__file__, "--side", name, *common))
                print(f"{name}: {runs[name][-1]['seconds']:.1f} s", file=sys.stderr)
        if vllm is not None:
            from stllava.stages.export import export

            runs["vllm"] = []
            export(work / "model", to=work / "served")  # under the names that vLLM wants
            with served(vllm, work / "served") as url:
                for _ in range(repeats):
                    runs["vllm"].append(run_side(__file__, "--side", url, *common))
    rates = {name: spread([run["texts_per_second"] for run in found]) for name, found in runs.items()}
    print(f"{setting.load}, {setting.model}: {setting.images} images, {repeats} repeats")
    print(f"{'':<8}{'texts a second':>24}{'added GB':>10}{'texts':>8}")
    for name, found in runs.items():
        added = statistics.median(run["added_bytes"] for run in found) / 1e9
        print(f"{name:<8}{rates[name]!s:>24}{added:>10.2f}{found[0]['texts']:>8.0f}")
    ratios: dict[str, JsonValue] = {}
    for peer in list(runs)[1:]:
        ratio = spread([o["texts_per_second"] / t["texts_per_second"] for o, t in zip(runs["ours"], runs[peer], strict=True)])
        ratios[peer] = as_json(ratio)
        print(f"ours gives {ratio} times the texts of {peer}")
    return {
        "bench": "generate",
        "setting": asdict(setting),
        "made": dict(made),
        "ours_over": ratios,
        "texts_per_second": {name: as_json(rate) for name, rate in rates.items()},
        "runs": {name: [dict(run) for run in found] for name, found in runs.items()},
    }


def main() -> None:
    """Compare, or run one side of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", choices=("self-asking", "slake"), default="self-asking")
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--plain-images", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32768, help="most tokens in our cache at once")
    parser.add_argument("--concurrency", type=int, default=32, help="requests a server gets at once")
    parser.add_argument("--vllm", help="Python of an environment with vllm: measure against its server too")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side is not None:
        setting = Setting(**json.loads(asked.setting))
        report_side(prepare(asked.work, setting) if asked.side == "prepare" else side(asked.side, setting, asked.work))
        return
    setting = Setting(asked.load, asked.model, asked.images, asked.plain_images, asked.tokens, asked.concurrency)
    figures = compare(setting, asked.vllm, asked.repeats)
    name = "-".join(["generate", asked.load, *([asked.model] if asked.model != "base" else []), device_kind()])
    print(write_result(name, figures))


if __name__ == "__main__":
    main()
