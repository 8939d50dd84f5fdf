-- One table, and every rule that a booking keeps. What decides between two requests for one slot is the UNIQUE
-- constraint below and nothing else, whoever inserts: the server, a second server, or a person with a SQL client.
-- Plain SQL for SQLite 3.34 and newer:  sqlite3 bookings.db < schema.sql
--
-- Each connection parses these rules anew, and the server opens one for each request, so they are short: characters
-- that cannot be printed stand as X'...', their bytes in UTF-8, and not as calls of char(). GLOB alone asks for text.

CREATE TABLE IF NOT EXISTS bookings (
    -- The id is given by SQLite. It stays below 2^53, because a JSON reader may hold numbers as doubles (RFC 8259,
    -- section 6).
    id INTEGER PRIMARY KEY
        CONSTRAINT "id is a number from 1 to 2^53 - 1" CHECK (id BETWEEN 1 AND 9007199254740991),

    tenant_id TEXT NOT NULL,

    -- A start time is a UTC instant of the years 0001 to 9999 in its one spelling, 2026-01-01T10:00:00Z: a second
    -- spelling of the same instant would be a second value for UNIQUE. '+0 seconds' makes SQLite recompute the date, so
    -- that 30 February is not handed back as it came; IS refuses what strftime answers with NULL, where = would not. The
    -- year 300 is looked up as 700, which has the same days: SQLite 3.40 reckons that 1 March 0300 is 29 February, its one
    -- error in these years. A blob sorts after any text.
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (replace(start_time_utc, '0300-', '0700-')
                IS strftime('%Y-%m-%dT%H:%M:%SZ', replace(start_time_utc, '0300-', '0700-'), '+0 seconds')
            AND start_time_utc BETWEEN '0001' AND ':'),

    -- The idempotency key names one request for ever.
    idempotency_key TEXT NOT NULL,

    -- The server passes the time itself; the default is for an INSERT written by hand. Same spelling as a start time,
    -- but for the year 300, which no clock shows.
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds') AND created_at >= '0001'),

    -- At most one booking for a tenant and a start time. Its index also serves a tenant's list, in order of time.
    UNIQUE (tenant_id, start_time_utc),

    -- At most one booking for a key, whichever tenant sent it: a retry finds its booking, or is told of the other use.
    UNIQUE (idempotency_key),

    -- A tenant and a key have 1 to 255 characters and no white space at either end: neither a space nor U+00A0, U+1680,
    -- U+2000-200A, U+2028, U+2029, U+202F, U+205F, U+3000. A blob is not equal to its trimmed text, so it fails too.
    CONSTRAINT "tenant_id and idempotency_key are text of 1 to 255 characters without white space at either end"
    CHECK (length(tenant_id) BETWEEN 1 AND 255 AND length(idempotency_key) BETWEEN 1 AND 255
        AND tenant_id = trim(tenant_id, X'20C2A0E19A80E28080E28081E28082E28083E28084E28085E28086E28087E28088E28089E2808AE280A8E280A9E280AFE2819FE38080')
        AND idempotency_key = trim(idempotency_key, X'20C2A0E19A80E28080E28081E28082E28083E28084E28085E28086E28087E28088E28089E2808AE280A8E280A9E280AFE2819FE38080')),

    -- They have no control characters: no NUL, at which text functions stop and which therefore has a look of its own,
    -- and none of U+0001-U+001F and U+007F-U+009F. They have no lone surrogates. GLOB reads one as U+FFFD, like U+FFFE and
    -- U+FFFF, so it looks for U+FFFD after these three have been taken out: *[U+0001-U+001F U+007F-U+009F U+FFFD]*.
    CONSTRAINT "tenant_id and idempotency_key have no control characters and no lone surrogates"
    CHECK (instr(tenant_id || idempotency_key, X'00') = 0
        AND replace(replace(replace(tenant_id || ' ' || idempotency_key, X'EFBFBD', ''),
            X'EFBFBE', ''), X'EFBFBF', '') NOT GLOB CAST(X'2A5B012D1F7F2DC29FEFBFBD5D2A' AS TEXT))
);
