-- One table, and every rule that a booking keeps. What decides between two requests for one slot is the UNIQUE
-- constraint below and nothing else, whoever inserts: the server, a second server, or a person with a SQL client.
-- Plain SQL for SQLite 3.34 and newer:  sqlite3 bookings.db < schema.sql

CREATE TABLE IF NOT EXISTS bookings (
    -- The id is given by SQLite and never given twice, so that a link to a booking cannot come to mean another one.
    -- It stays below 2^53, because a JSON reader may hold numbers as doubles (RFC 8259, section 6).
    id INTEGER PRIMARY KEY AUTOINCREMENT
        CONSTRAINT "id is a number from 1 to 2^53 - 1"
        CHECK (id BETWEEN 1 AND 9007199254740991),

    -- A tenant is text of 1 to 255 characters. It has no control characters (U+0000-001F, U+007F-009F; text functions
    -- stop at a NUL, hence the look for one by itself), no white space at either end, and no lone surrogates, which
    -- GLOB reads as U+FFFD like whatever else is no character: so the three that may be are taken out before the look.
    tenant_id TEXT NOT NULL
        CONSTRAINT "tenant_id is text of 1 to 255 characters, without control characters or white space at its ends"
        CHECK (typeof(tenant_id) = 'text' AND length(tenant_id) BETWEEN 1 AND 255
            AND instr(tenant_id, char(0)) = 0
            AND tenant_id NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*'
            AND tenant_id = trim(tenant_id, char(32, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198, 8199, 8200,
                8201, 8202, 8232, 8233, 8239, 8287, 12288))
            AND replace(replace(replace(tenant_id, char(65533), ''), char(65534), ''), char(65535), '')
                NOT GLOB '*' || char(65533) || '*'),

    -- A start time is a UTC instant of the years 0001 to 9999 in its one spelling, 2026-01-01T10:00:00Z: a second
    -- spelling of the same instant would be a second value for UNIQUE. '+0 seconds' makes SQLite recompute the date, so
    -- that 30 February is not handed back as it came; IS refuses what strftime answers with NULL, where = would not.
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (start_time_utc IS strftime('%Y-%m-%dT%H:%M:%SZ', start_time_utc, '+0 seconds')
            AND start_time_utc >= '0001'),

    -- The idempotency key names one request for ever. It is text under the same rules as a tenant.
    idempotency_key TEXT NOT NULL
        CONSTRAINT "idempotency_key is text of 1 to 255 characters, without control characters or white space at its ends"
        CHECK (typeof(idempotency_key) = 'text' AND length(idempotency_key) BETWEEN 1 AND 255
            AND instr(idempotency_key, char(0)) = 0
            AND idempotency_key NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*'
            AND idempotency_key = trim(idempotency_key, char(32, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198,
                8199, 8200, 8201, 8202, 8232, 8233, 8239, 8287, 12288))
            AND replace(replace(replace(idempotency_key, char(65533), ''), char(65534), ''), char(65535), '')
                NOT GLOB '*' || char(65533) || '*'),

    -- The server passes the time itself; the default is for an INSERT written by hand. Same spelling as a start time.
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds')
            AND created_at >= '0001'),

    -- At most one booking for a tenant and a start time. Its index also serves a tenant's list, in order of time.
    UNIQUE (tenant_id, start_time_utc),

    -- At most one booking for a key, whichever tenant sent it: a retry finds its booking, or is told of the other use.
    UNIQUE (idempotency_key)
);
