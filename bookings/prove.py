"""python -m bookings.prove: tries to book a slot twice and to bring back a cancelled booking.

Starts two servers on a temporary database or on --database, or uses the running one at --url.
Each part prints what happened, and what was expected if that differs. It relies only on
responses and on what a separate reader finds in the database.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from bookings.process import ServerProcess
from bookings.prove_parts import PARTS, Part, Request, Servers, by_hand, kills, send
from bookings.terminal import fail, run_command

_NAME = "bookings.prove"
RUN = Path(__file__).resolve().parent.parent / "run.py"


def main() -> int:
    """Run the parts that apply. Return the exit code, 1 if any part failed."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_NAME}",
        description="Try to book a slot twice and to bring back a cancelled booking.",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--url", help="test the running server at this URL, with new tenants")
    group.add_argument(
        "--database",
        help="test servers on this SQLite file or rqlite cluster, with new tenants (default: a "
        "temporary file)",
    )
    options = parser.parse_args()
    if "" in (options.url, options.database):  # As from an unset variable.
        parser.error("--url and --database need a value")
    if options.url:
        return run_parts(Servers([options.url.rstrip("/")]), PARTS)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bookings-prove-"))
        database = options.database or os.path.join(folder, "bookings.db")
        command = [sys.executable, str(RUN), "--host=127.0.0.1", "--quiet", "--database", database]
        processes = []
        for _ in range(2):
            processes.append(ServerProcess(command))
            stack.callback(processes[-1].kill)
        servers = Servers([process.url for process in processes], database, processes)
        is_file = os.path.exists(database)  # A cluster has no file.
        return run_parts(servers, [*PARTS, by_hand, kills] if is_file else [*PARTS, kills])


def run_parts(servers: Servers, parts: Sequence[Part]) -> int:
    for url in servers.urls:
        if send(url, Request("GET", "/live"))[0] != 200:
            return fail(_NAME, f"no bookings server answers at {url or 'its port'}")
    if not servers.processes:
        print("Not tested without control of the server: INSERT by hand, kills.")
    elif by_hand not in parts:
        print("Not tested on a cluster: INSERT by hand.")
    passed = True
    for number, part in enumerate(parts, 1):
        started = time.monotonic()
        expected, happened = part(servers, f"prove-{uuid.uuid4().hex[:12]}")
        passed = passed and happened == expected
        verdict = "ok" if happened == expected else f"FAIL, expected {expected}"
        seconds = time.monotonic() - started
        line = f"[{number}/{len(parts)}] {seconds:4.1f} s  {part.__doc__}: {happened}: {verdict}"
        print(line, flush=True)
    print("PROVED: no slot was booked twice." if passed else "FAILED: see above.", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(run_command(_NAME, main))
