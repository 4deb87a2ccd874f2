#!/usr/bin/env python3
"""Constant load of GETs of the sample's /health.php; a line for each request on standard output.

    load.py ADDRESS PORT HOST

20 clients send 5 requests a second each, one after the other: half of them over a connection that
is kept, half over a new one each time. Every answer is read to its end and checked; clients keep
cookies as browsers do. Ends when its standard input does, or after 280 s. A line is: begin, end
(seconds of the monotonic clock), client, kind, outcome (good, failed or raced), version, backend, reason.
"""

import http.client
import json
import re
import sys
import threading
import time

CLIENTS, PERIOD, LONGEST, PATIENCE = 20, 0.2, 280, 30
PATH = "/health.php"

out = threading.Lock()
over = threading.Event()


class Client(threading.Thread):
    def __init__(self, number, address, port, host):
        super().__init__(daemon=True)
        self.number, self.host = number, host
        self.kept = number % 2 == 0
        self.connection = http.client.HTTPConnection(address, port, timeout=PATIENCE)
        self.cookies = {}

    def once(self):
        """Version and backend of one answer; raises what went wrong."""
        headers = {"Host": self.host}
        if not self.kept:
            headers["Connection"] = "close"
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{k}={v}" for k, v in self.cookies.items())
        self.connection.request("GET", PATH, headers=headers)
        answer = self.connection.getresponse()
        body = answer.read()
        for cookie in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.split(";")[0].partition("=")
            self.cookies[name] = value
        if answer.status != 200:
            raise ValueError(f"status {answer.status}: {body[:100]!r}")
        page = json.loads(body)
        version = re.fullmatch(r"v(\d+)", page["version"])
        if page["ok"] is not True or not version or not page["backend"]:
            raise ValueError(f"bad page: {body[:100]!r}")
        return int(version[1]), page["backend"]

    def run(self):
        due = time.monotonic() + PERIOD * self.number / CLIENTS
        while not over.wait(max(0, due - time.monotonic())):
            reused = self.connection.sock is not None
            begin = time.monotonic()
            outcome, version, backend, why = "good", 0, "-", ""
            try:
                version, backend = self.once()
            except http.client.RemoteDisconnected as e:
                # A kept connection that was closed just then: browsers ask again.
                outcome, why = ("raced" if reused else "failed"), repr(e)
            except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as e:
                raced = reused and isinstance(e, (ConnectionResetError, BrokenPipeError))
                outcome, why = ("raced" if raced else "failed"), repr(e)
            if outcome != "good" or not self.kept:
                self.connection.close()
            row = (f"{begin:.6f}", f"{time.monotonic():.6f}", self.number, "kept" if self.kept else "new",
                   outcome, version, backend, " ".join(why.split()))
            with out:
                print(*row, sep="\t", flush=True)
            # Who was kept waiting does not make up for it.
            due = max(due + PERIOD, time.monotonic())


def main():
    address, port, host = sys.argv[1:]
    clients = [Client(n, address, int(port), host) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    limit = threading.Timer(LONGEST, over.set)
    limit.daemon = True
    limit.start()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    for client in clients:
        client.join()


if __name__ == "__main__":
    main()
