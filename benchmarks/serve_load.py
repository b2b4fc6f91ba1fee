"""Callers of a server, for `serve_table.py`: run by locust, each with its own client and photo.

LOAD_FOLDER holds the photos; LOAD_RATE, where it is set, is what one caller asks a second.
"""

from __future__ import annotations

import os
import random
import time
from itertools import count
from pathlib import Path

from locust import FastHttpUser, constant_throughput, task

_NUMBERS = count()
_RATE = float(os.environ.get("LOAD_RATE", "0"))
_EDGE = "part-of-a-form"


class Caller(FastHttpUser):  # type: ignore[misc,unused-ignore]  # locust may be elsewhere
    """One that asks, waits for the answer, and asks again."""

    if _RATE:
        wait_time = constant_throughput(_RATE)

    def on_start(self) -> None:
        """Choose a client and a photo."""
        number = next(_NUMBERS)
        files = sorted(Path(os.environ["LOAD_FOLDER"]).glob("*.jpg"))
        photo = files[number % len(files)].read_bytes()
        field = f"--{_EDGE}\r\nContent-Disposition: form-data; name="
        body = f'{field}"client"\r\n\r\n{number % 64 + 1}\r\n'.encode()
        body += f'{field}"images"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'.encode()
        self.body = body + photo + f"\r\n--{_EDGE}--\r\n".encode()
        self.headers = {"content-type": f"multipart/form-data; boundary={_EDGE}"}
        if _RATE:
            # They all start at once: without this they would all ask at once, again and again.
            time.sleep(random.Random(number).uniform(0, 1 / _RATE))

    @task  # type: ignore[untyped-decorator,unused-ignore]
    def classify(self) -> None:
        """One question."""
        self.client.post("/v1/classify", data=self.body, headers=self.headers)
