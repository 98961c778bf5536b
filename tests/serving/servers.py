"""A server in a process of its own, for tests."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path


ROOT = Path(__file__).parent.parent.parent
QUESTION = "In which country is the city of Bensekrane?"
ASKED = [{"role": "user", "content": QUESTION}]


class Server:
    """A process that says where it serves, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.lines, self._url, self._found = process, [], None, threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"http://(127\.0\.0\.1|localhost):\d+", line):
                self._url = self._url or found[0]
                self._found.set()
        self._found.set()

    @property
    def url(self) -> str:
        assert self._found.wait(300) and self._url, "".join(self.lines)
        return self._url

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def bytes(self) -> int:
        """Memory that the process holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


@contextlib.contextmanager
def started(*command: str, python: str | Path = sys.executable, **environment: str):
    """A server that `python COMMAND` starts; it is ended with the block."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    process = subprocess.Popen(
        [str(python), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    try:
        yield Server(process)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
