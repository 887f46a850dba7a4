"""Runs a server for as long as its standard input stays open, and ends all of the server's processes then.

    python server_keeper.py COMMAND …

Whoever starts it holds the other end of the pipe. The system closes that end when the starter ends, even by SIGKILL, so no
server is left behind. It imports nothing of stllava, to be there at once.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 10.0
"""What a server has to end by itself, once it was asked to."""


def end_group(group: int, *, process: "subprocess.Popen[bytes]") -> None:
    """End every process of a group: asked to first, then killed."""
    for how, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 1.0)):
        try:
            os.killpg(group, how)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)


def main() -> None:
    """Run the server until it ends or the pipe is closed; the exit code is the server's."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # The pipe says when it is over. What is ignored here the server would ignore too; a handler is not inherited.
        signal.signal(number, lambda *_: None)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        while os.read(0, 1):
            pass
        end_group(process.pid, process=process)

    threading.Thread(target=watch, daemon=True).start()
    code = process.wait()
    end_group(process.pid, process=process)  # Its children do not outlive it either.
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
