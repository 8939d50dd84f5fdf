-- The tables and all their rules. The two UNIQUE constraints of bookings decide between
-- concurrent INSERTs, whether they come from the server, a second server or a SQL client.
-- Plain SQL for SQLite 3.34 and newer:  sqlite3 bookings.db < schema.sql
--
-- The server opens a connection for each request, and every connection parses this text.
-- The rules are therefore short, and the server strips these comments before it runs them.

CREATE TABLE IF NOT EXISTS bookings (
    -- AUTOINCREMENT: an id is never given to a second booking. The limit keeps ids exact for
    -- JSON readers that store numbers as doubles (RFC 8259, section 6).
    id INTEGER PRIMARY KEY AUTOINCREMENT
        CONSTRAINT "id must be between 1 and 2^53 - 1"
        CHECK (id BETWEEN 1 AND 9007199254740991),

    -- length() stops at a NUL, so the bytes are limited as well: 255 characters of four bytes.
    tenant_id TEXT NOT NULL
        CONSTRAINT "tenant_id must be text of 1 to 255 characters"
        CHECK (typeof(tenant_id) = 'text' AND length(tenant_id) BETWEEN 1 AND 255
            AND length(CAST(tenant_id AS BLOB)) <= 1020),

    -- One spelling per instant: with two, UNIQUE would let the same slot be booked twice.
    -- '+0 seconds' makes strftime normalize the date, so 30 February does not match itself.
    -- IS, unlike =, also rejects text that strftime cannot read and returns as NULL.
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc must be written like 2026-01-01T10:00:00Z, year 1970 or later"
        CHECK (start_time_utc >= '1970' AND start_time_utc IS
            strftime('%Y-%m-%dT%H:%M:%SZ', start_time_utc, '+0 seconds')),

    idempotency_key TEXT NOT NULL
        CONSTRAINT "idempotency_key must be text of 1 to 255 characters"
        CHECK (typeof(idempotency_key) = 'text' AND length(idempotency_key) BETWEEN 1 AND 255
            AND length(CAST(idempotency_key AS BLOB)) <= 1020),

    -- The server passes the time itself; the default serves hand-written INSERTs.
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at must be written like 2026-01-01T10:00:00Z, year 1970 or later"
        CHECK (created_at >= '1970' AND created_at IS
            strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds')),

    -- At most one booking per slot. A tenant's list is read from the index of this constraint.
    UNIQUE (tenant_id, start_time_utc),

    -- At most one booking per idempotency key, whichever tenant sent it, so that a retry finds
    -- its booking.
    UNIQUE (idempotency_key)
);

-- Cancelling moves a row from bookings to this table, in one transaction. The rules of bookings
-- have judged it. The primary key makes a second cancellation of one booking impossible.
CREATE TABLE IF NOT EXISTS cancellations (
    id INTEGER PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    start_time_utc TEXT NOT NULL,
    idempotency_key TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    cancelled_at TEXT NOT NULL
);

-- A late retry of a cancelled booking must not book again. Without a WHEN clause, an INSERT on a
-- fresh connection takes 10 us less.
CREATE TRIGGER IF NOT EXISTS reject_cancelled AFTER INSERT ON bookings
BEGIN
    SELECT RAISE(ABORT, 'the booking with this idempotency key was cancelled')
    FROM cancellations WHERE idempotency_key = NEW.idempotency_key;
END;
