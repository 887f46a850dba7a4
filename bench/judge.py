"""Calls per second of `judge` against a slow endpoint, and its memory as comparisons grow.

    python bench/judge.py

The endpoint is a process of its own on this machine that answers every call after `--seconds`, `--at-once` calls at a
time (more are refused with 429): its limit is at-once / seconds calls a second. Judged are pairs of answers about grey
images of 512 × 512 pixels with noise, ten questions an image, in both orders, through the stage itself: reading answers,
encoding images, writing every exchange and the judgments. Memory is what judging adds to the process, with an endpoint that
answers at once, for a tenth of the comparisons and for all of them.

Writes bench/results/judge-DEVICE.json and prints a table.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from shared.measure import Figures, device_kind, forget_peak, peak_memory, report_side, run_side, write_result

SIDE, QUESTIONS = 512, 10


async def serve(port: int, seconds: float, at_once: int) -> None:
    """Answer chat completions after so many seconds."""
    message = {"role": "assistant", "content": "Both were read.\nVerdict: 1"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 900, "completion_tokens": 12}
    good = json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    busy = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal busy
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
                )
                await reader.readexactly(length)
                busy += 1
                status, body = (b"429 Too Many Requests", b"{}") if busy > at_once else (b"200 OK", good)
                await asyncio.sleep(seconds)
                busy -= 1
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
                )
                writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=1 << 24, backlog=512)
    async with server:
        await server.serve_forever()


@contextmanager
def served(seconds: float, at_once: int) -> Iterator[str]:
    """The endpoint's address while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--serve", str(port), "--seconds", str(seconds), "--at-once", str(at_once)]
    server = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("the endpoint did not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def side(comparisons: int, url: str, at_once: int) -> Figures:
    """Judge so many pairs of answers."""
    from stllava.config import AnswerOptions, ChatOptions, JudgeOptions
    from stllava.records import Answers, Sampling, content_id
    from stllava.stages.judge import judge
    from stllava.store import Stage

    with tempfile.TemporaryDirectory(prefix="stllava-bench-") as folder:
        work = Path(folder)
        (work / "images").mkdir()
        names = [f"{number}.png" for number in range(max(1, comparisons // QUESTIONS))]
        for name in names:
            Image.effect_noise((SIDE, SIDE), 20).save(work / "images" / name)
        how = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=64, seed=0)
        stage = Stage("answer", work / "answers", AnswerOptions(), inputs={}, existing="error")
        stage.write_records(
            "answers",
            (
                Answers(
                    id=content_id("bench", number),
                    question_id=content_id(number),
                    images=(names[number // QUESTIONS % len(names)],),
                    question=f"What is seen at place {number}?",
                    completions=(
                        f"A nodule in the left lobe, {number} mm.",
                        f"No nodule, but an effusion of {number} ml.",
                    ),
                    policy="bench",
                    sampling=how,
                )
                for number in range(comparisons)
            ),
        )
        stage.finish(counts_in=comparisons, counts_out=comparisons)
        chat = ChatOptions(url=url, model="bench", concurrency=at_once, structured=False, input_price=1, output_price=1)
        options = JudgeOptions(expert="chat", mode="pairwise", chat=chat, max_flips=1.0)
        before = forget_peak()
        began = time.perf_counter()
        manifest = judge(options, answers=work / "answers", root=work / "images", to=work / "judgments").manifest
        seconds = time.perf_counter() - began
        return {
            "comparisons": float(comparisons),
            "calls": manifest.measures["requests"],
            "verdicts": manifest.measures["verdicts"],
            "seconds": seconds,
            "calls_per_second": manifest.measures["requests"] / seconds,
            "added_bytes": float(peak_memory() - before),
        }


def main() -> None:
    """Measure, or be the endpoint or one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long the endpoint takes")
    parser.add_argument("--at-once", type=int, default=64, help="calls it takes at a time")
    parser.add_argument("--calls", type=int, default=9600, help="calls of the timed run")
    parser.add_argument("--comparisons", type=int, default=20_000, help="comparisons of the run whose memory is measured")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve is not None:
        asyncio.run(serve(asked.serve, asked.seconds, asked.at_once))
        return
    if asked.side is not None:
        count, url = asked.side.split("@")
        report_side(side(int(count), url, asked.at_once))
        return
    runs: dict[str, Figures] = {}
    for name, comparisons, seconds in (
        ("slow", asked.calls // 2, asked.seconds),
        ("tenth", asked.comparisons // 10, 0.0),
        ("all", asked.comparisons, 0.0),
    ):
        with served(seconds, asked.at_once) as url:
            runs[name] = run_side(__file__, "--side", f"{comparisons}@{url}", "--at-once", str(asked.at_once))
        run = runs[name]
        calls = f"{run['comparisons']:>8.0f} comparisons, {run['calls']:>6.0f} calls of {seconds:g} s"
        print(f"{calls}: {run['calls_per_second']:6.1f} calls/s, {run['added_bytes'] / 1e6:.0f} MB added")
    print(f"the endpoint's limit is {asked.at_once / asked.seconds:.0f} calls/s")
    figures = {
        "bench": "judge",
        "setting": {"seconds": asked.seconds, "at_once": asked.at_once},
        "limit_calls_per_second": asked.at_once / asked.seconds,
        "runs": {name: dict(run) for name, run in runs.items()},
    }
    print(write_result(f"judge-{device_kind()}", figures))


if __name__ == "__main__":
    main()
