"""Bookings: at most one per tenant and start time, because the database says so.

The modules in reading order, lowest floor first. A module imports only from floors below its own.

    floor 0  problems   every refusal: one table of type, status, title
    floor 1  fields     what a client may send: headers and bytes to a checked request, or a problem
             store      the SQLite store, its outcomes, and all SQL
    floor 2  api        a request and the store to a response: the routes, and each outcome's status; openapi.json
             rqlite     the store on an rqlite cluster: the same methods and statements, over HTTP
    floor 3  server     sockets, framing, limits, deadlines, draining: bytes to a request, a response to bytes
             databases  which of the two stores `--database` names
    floor 4  show       python -m bookings.show prints the database
             backup     python -m bookings.backup copies it while the server works
             prove      python -m bookings.prove tries to book a slot twice, in every way there is
             workers    processes: a server in each, all on one socket, and a parent that keeps them alive

`run.py` stands above them: it reads the settings, makes the database, listens and lets the workers serve. A request's
way is one line: `server` reads it, `api` routes it, `fields` checks it, `store` decides it, `api` words it, `server` sends it.
"""
