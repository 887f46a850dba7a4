"""A process that has loaded everything once and forks for every command: a page's commands run in a real shell, each at once.

`quick_commands(folder)` writes the programs `stllava`, `python`, `pip` and `make` into a folder for PATH. The first two hand
their words, their folder, their environment and their open files to a fork of the process. Nothing is installed by pip and
nothing made by make: what both are asked for is held against pyproject.toml and the Makefile (`helpers/block_checks.py`).
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

MORE_FLAGS = "STLLAVA_TEST_FLAGS"
"""Variable with flags that a command gets behind its own, as JSON: {"sft": ["--epochs", "1"]}."""
LOADED = (
    *(
        f"stllava.{name}"
        for name in ("commands.flags", "pipeline", "training.memory", "training.trainer", "stages.dpo", "stages.export")
    ),
    *(f"transformers.models.{name}" for name in ("llava.modeling_llava", "clip.modeling_clip", "llama.modeling_llama")),
)
CLIENT = """#!{python} -ISs
import json, os, socket, sys
request = json.dumps([{program!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    socket.send_fds(connection, [b"+"], [0, 1, 2])
    connection.sendall(request)
    connection.shutdown(socket.SHUT_WR)
    reply = connection.recv(16)
sys.exit(int(reply) if reply else "{program} ended without a word")
"""


@contextmanager
def quick_commands(folder: Path) -> Iterator[Path]:
    """The folder for PATH, while the process is there."""
    folder.mkdir()
    address = str(folder / "address")
    for program in ("stllava", "python"):
        (folder / program).write_text(CLIENT.format(python=sys.executable, program=program, address=address))
    for program in ("pip", "make"):
        (folder / program).write_text("#!/bin/sh\n")
    for program in ("stllava", "python", "pip", "make"):
        (folder / program).chmod(0o700)
    with subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield folder
        finally:
            process.kill()


def serve(address: str) -> None:
    """Fork for every command that comes."""
    import torch

    # What commands would load by themselves, each of them anew.
    for name in LOADED:
        import_module(name)
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)  # noqa: T201
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(connection)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Be the command that a client asks for, and end."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    program, words, folder, environment = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # Files of this process that were opened on others know too much of those.
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        run(program, words)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 - the client's exit code and its error output tell it
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code).encode())
    os._exit(code)


def run(program: str, words: list[str]) -> None:
    """Run a command of ours, or a script."""
    if program == "python":
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")
        return
    from stllava.cli import main

    more = json.loads(os.environ.get(MORE_FLAGS, "{}"))
    given = [*words, *more.get(words[0], [])]
    # `demo` is the run of a recipe that is shipped, with no flag for its size.
    main(["run", "phantom.yaml", *given[1:]] if words[0] == "demo" else given)


if __name__ == "__main__":
    serve(sys.argv[1])
