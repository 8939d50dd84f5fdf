"""Bookings: at most one per tenant and start time, because the database says so.

A request passes through these modules. Each imports only from modules below it:

    __main__    starts the server
    settings    flags, environment variables and defaults of every command
    server/     bytes <-> requests: sockets, HTTP/1.1, limits, deadlines, worker processes
    api         routes: a request and a store in, a response out
    fields      validates what a client sends; `values` and `strict_json` have the grammars
    problems    every problem type
    stores/     decide who gets a slot, in a SQLite file or on an rqlite cluster

`cpus` counts the CPUs and binds workers to them. The other commands are python -m bookings.show,
.backup, .restore and .prove. `terminal` has their common parts, `prove_parts` what `prove` tries,
and `process` starts the servers that `prove` and the tests use.
"""

import sys

# Every Python must be able to parse this file and run.py, so they have no newer syntax.
if sys.hexversion < 0x03090000:
    sys.exit("bookings: needs Python 3.9 or newer; this is " + sys.version.split()[0])

__version__ = "1.0.0"
