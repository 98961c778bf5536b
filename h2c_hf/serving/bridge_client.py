"""Ask bridge servers for bridged keys and values, by `Bridger`'s interface: a connector uses either."""

import itertools
import json
import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import safetensors.torch
import urllib3

from .bridging import Bridged, Prompt


RETRIED = (429, 502, 503, 504)
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


class BridgeServerError(RuntimeError):
    """No bridge server answered in time, or one refused the prompt."""


class BridgeClient:
    """Sends each prompt to one of several servers, in turn. A server that does not answer, or whose queue is
    full, is passed over for the next one until the time is up; a prompt that a server refuses is not sent
    again."""

    def __init__(
        self, urls: list[str], token: str | None = None, timeout: float = 60.0, connections: int = 16
    ):
        """
        Args:
            urls: of the servers, as "http://host:8200".
            token: that the servers expect.
            timeout: seconds for a prompt, retries included.
            connections: requests at a time.
        """
        if not urls:
            raise ValueError("Got no URL of a bridge server; expected at least one.")
        self.urls, self.timeout = [url.rstrip("/") for url in urls], timeout
        self._headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        }
        self._http = urllib3.PoolManager(num_pools=len(urls), maxsize=connections, retries=False)
        self._turn, self._closed = itertools.cycle(range(len(urls))), threading.Event()
        self._threads = ThreadPoolExecutor(connections, "h2c-bridge-client")

    def submit(self, prompt: Prompt) -> Future:
        """Return a future of a `Bridged`, on the CPU; it raises `BridgeServerError`."""
        return self._threads.submit(self._bridge, prompt)

    def close(self) -> None:
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    def pairs(self) -> list[dict]:
        """Return the description of its pair that each server gives.

        Raises:
            BridgeServerError: if one does not answer in time.
        """
        return [json.loads(self._ask("GET", "/pair", [url])) for url in self.urls]

    def _bridge(self, prompt: Prompt) -> Bridged:
        first = next(self._turn)
        body = {
            "input_ids": prompt.input_ids,
            "sharer_input_ids": prompt.sharer_input_ids,
            "control": prompt.control,
        }
        content = self._ask(
            "POST", "/bridge", self.urls[first:] + self.urls[:first], json.dumps(body).encode()
        )
        try:
            tensors = safetensors.torch.load(content)
            return Bridged(tensors["keys"], tensors["values"])
        except (safetensors.SafetensorError, KeyError) as error:
            raise BridgeServerError(
                f"A bridge server's answer is no safetensors body of keys and values: {error}"
            ) from error

    def _ask(self, method: str, path: str, urls: list[str], body: bytes | None = None) -> bytes:
        end, pause, problem = time.monotonic() + self.timeout, FIRST_PAUSE, "it was not asked"
        for turn in itertools.count():
            url = urls[turn % len(urls)]
            left = end - time.monotonic()
            if left <= 0 or self._closed.is_set():
                raise BridgeServerError(
                    f"No bridge server answered within {self.timeout:g} s; the last was {url}: {problem}."
                )
            try:
                timeout = urllib3.Timeout(connect=min(5.0, left), read=left)
                answer = self._http.request(
                    method, url + path, body=body, headers=self._headers, timeout=timeout
                )
            except urllib3.exceptions.HTTPError as error:
                problem = f"{type(error).__name__}"
            else:
                if answer.status == 200:
                    return answer.data
                problem = f"status {answer.status}: {answer.data[:300].decode(errors='replace')}"
                if answer.status not in RETRIED:
                    raise BridgeServerError(f"{url} refused a prompt, {problem}")
            if turn % len(urls) == len(urls) - 1:  # all were asked
                self._closed.wait(min(pause * random.uniform(0.5, 1.5), max(0.0, end - time.monotonic())))
                pause = min(2 * pause, LONGEST_PAUSE)
