"""Runs a command and ends it, and everything that it has started, when this process's standard input is closed.

Whoever starts a keeper holds the other end of that pipe. The system closes it however that process ends, by SIGKILL too, so
nothing is left behind. A script of its own, on the standard library alone: `python keeper.py GRACE_S COMMAND...`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time


def main() -> None:
    """Exits with the command's own code, or 128 and the signal that ended it."""
    grace_s = float(sys.argv[1])
    # a session of its own, whose processes can be ended together
    child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who holds the pipe
    signal.signal(signal.SIGTERM, lambda *_: _signal(child, signal.SIGTERM))
    threading.Thread(target=_end_with_input, args=(child, grace_s), daemon=True).start()
    code = child.wait()
    _signal(child, signal.SIGKILL)  # what it leaves behind
    sys.exit(code if code >= 0 else 128 - code)


def _end_with_input(child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    while os.read(0, 1024):
        pass
    _signal(child, signal.SIGTERM)
    time.sleep(grace_s)  # the main thread ends this process as soon as the command has ended
    _signal(child, signal.SIGKILL)


def _signal(child: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    main()
