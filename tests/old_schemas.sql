-- The schemas of earlier versions, each after a line with its commit, and that of the Node original.
-- test_restore.py makes a database of each.

-- b488c92
CREATE TABLE IF NOT EXISTS bookings (
    id INTEGER PRIMARY KEY AUTOINCREMENT
        CONSTRAINT "id must be between 1 and 2^53 - 1"
        CHECK (id BETWEEN 1 AND 9007199254740991),
    tenant_id TEXT NOT NULL
        CONSTRAINT "tenant_id must be text of 1 to 255 characters"
        CHECK (typeof(tenant_id) = 'text' AND length(tenant_id) BETWEEN 1 AND 255
            AND length(CAST(tenant_id AS BLOB)) <= 1020),
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc must be written like 2026-01-01T10:00:00Z, year 1970 or later"
        CHECK (start_time_utc >= '1970' AND start_time_utc IS
            strftime('%Y-%m-%dT%H:%M:%SZ', start_time_utc, '+0 seconds')),
    idempotency_key TEXT NOT NULL
        CONSTRAINT "idempotency_key must be text of 1 to 255 characters"
        CHECK (typeof(idempotency_key) = 'text' AND length(idempotency_key) BETWEEN 1 AND 255
            AND length(CAST(idempotency_key AS BLOB)) <= 1020),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at must be written like 2026-01-01T10:00:00Z, year 1970 or later"
        CHECK (created_at >= '1970' AND created_at IS
            strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds')),
    UNIQUE (tenant_id, start_time_utc),
    UNIQUE (idempotency_key)
);
CREATE TABLE IF NOT EXISTS cancellations (
    id INTEGER PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    start_time_utc TEXT NOT NULL,
    idempotency_key TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    cancelled_at TEXT NOT NULL
);
CREATE TRIGGER IF NOT EXISTS reject_cancelled AFTER INSERT ON bookings
WHEN EXISTS (SELECT 1 FROM cancellations
    WHERE idempotency_key = NEW.idempotency_key OR id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'the booking with this idempotency key or id was cancelled');
END;

-- 2c68622
CREATE TABLE IF NOT EXISTS bookings (
    id INTEGER PRIMARY KEY AUTOINCREMENT
        CONSTRAINT "id must be between 1 and 2^53 - 1"
        CHECK (id BETWEEN 1 AND 9007199254740991),
    tenant_id TEXT NOT NULL
        CONSTRAINT "tenant_id must be text of 1 to 255 characters"
        CHECK (typeof(tenant_id) = 'text' AND length(tenant_id) BETWEEN 1 AND 255
            AND length(CAST(tenant_id AS BLOB)) <= 1020),
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc must be written like 2026-01-01T10:00:00Z, year 1970 or later"
        CHECK (start_time_utc >= '1970' AND start_time_utc IS
            strftime('%Y-%m-%dT%H:%M:%SZ', start_time_utc, '+0 seconds')),
    idempotency_key TEXT NOT NULL
        CONSTRAINT "idempotency_key must be text of 1 to 255 characters"
        CHECK (typeof(idempotency_key) = 'text' AND length(idempotency_key) BETWEEN 1 AND 255
            AND length(CAST(idempotency_key AS BLOB)) <= 1020),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at must be written like 2026-01-01T10:00:00Z, year 1970 or later"
        CHECK (created_at >= '1970' AND created_at IS
            strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds')),
    UNIQUE (tenant_id, start_time_utc),
    UNIQUE (idempotency_key)
);

-- 8193bcc
CREATE TABLE IF NOT EXISTS bookings (
    id INTEGER PRIMARY KEY AUTOINCREMENT
        CONSTRAINT "id must be between 1 and 2^53 - 1"
        CHECK (id BETWEEN 1 AND 9007199254740991),
    tenant_id TEXT NOT NULL
        CONSTRAINT "tenant_id must be text of 1 to 255 characters"
        CHECK (typeof(tenant_id) = 'text' AND length(tenant_id) BETWEEN 1 AND 255),
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc must be written like 2026-01-01T10:00:00Z, year 1970 or later"
        CHECK (start_time_utc >= '1970' AND start_time_utc IS
            strftime('%Y-%m-%dT%H:%M:%SZ', start_time_utc, '+0 seconds')),
    idempotency_key TEXT NOT NULL
        CONSTRAINT "idempotency_key must be text of 1 to 255 characters"
        CHECK (typeof(idempotency_key) = 'text' AND length(idempotency_key) BETWEEN 1 AND 255),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at must be written like 2026-01-01T10:00:00Z, year 1970 or later"
        CHECK (created_at >= '1970' AND created_at IS
            strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds')),
    UNIQUE (tenant_id, start_time_utc),
    UNIQUE (idempotency_key)
);

-- e262b3d
CREATE TABLE IF NOT EXISTS bookings (
    id INTEGER PRIMARY KEY
        CONSTRAINT "id is a number from 1 to 2^53 - 1" CHECK (id BETWEEN 1 AND 9007199254740991),
    tenant_id TEXT NOT NULL,
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (replace(start_time_utc, '0300-', '0700-')
                IS strftime('%Y-%m-%dT%H:%M:%SZ', replace(start_time_utc, '0300-', '0700-'), '+0 seconds')
            AND start_time_utc BETWEEN '0001' AND ':'),
    idempotency_key TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds') AND created_at >= '0001'),
    UNIQUE (tenant_id, start_time_utc),
    UNIQUE (idempotency_key),
    CONSTRAINT "tenant_id and idempotency_key are text of 1 to 255 characters without white space at either end"
    CHECK (length(tenant_id) BETWEEN 1 AND 255 AND length(idempotency_key) BETWEEN 1 AND 255
        AND tenant_id = trim(tenant_id, X'20C2A0E19A80E28080E28081E28082E28083E28084E28085E28086E28087E28088E28089E2808AE280A8E280A9E280AFE2819FE38080')
        AND idempotency_key = trim(idempotency_key, X'20C2A0E19A80E28080E28081E28082E28083E28084E28085E28086E28087E28088E28089E2808AE280A8E280A9E280AFE2819FE38080')),
    CONSTRAINT "tenant_id and idempotency_key have no control characters and no lone surrogates"
    CHECK (instr(tenant_id || idempotency_key, X'00') = 0
        AND replace(replace(replace(tenant_id || ' ' || idempotency_key, X'EFBFBD', ''),
            X'EFBFBE', ''), X'EFBFBF', '') NOT GLOB CAST(X'2A5B012D1F7F2DC29FEFBFBD5D2A' AS TEXT))
);

-- 8eef503
CREATE TABLE IF NOT EXISTS bookings (
    id INTEGER PRIMARY KEY
        CONSTRAINT "id is a number from 1 to 2^53 - 1" CHECK (id BETWEEN 1 AND 9007199254740991),
    tenant_id TEXT NOT NULL,
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (start_time_utc IS strftime('%Y-%m-%dT%H:%M:%SZ', start_time_utc, '+0 seconds')
            AND start_time_utc >= '0001'),
    idempotency_key TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds') AND created_at >= '0001'),
    UNIQUE (tenant_id, start_time_utc),
    UNIQUE (idempotency_key),
    CONSTRAINT "tenant_id and idempotency_key are text of 1 to 255 characters without white space at either end"
    CHECK (length(tenant_id) BETWEEN 1 AND 255 AND length(idempotency_key) BETWEEN 1 AND 255
        AND tenant_id = trim(tenant_id, X'20C2A0E19A80E28080E28081E28082E28083E28084E28085E28086E28087E28088E28089E2808AE280A8E280A9E280AFE2819FE38080')
        AND idempotency_key = trim(idempotency_key, X'20C2A0E19A80E28080E28081E28082E28083E28084E28085E28086E28087E28088E28089E2808AE280A8E280A9E280AFE2819FE38080')),
    CONSTRAINT "tenant_id and idempotency_key have no control characters and no lone surrogates"
    CHECK (instr(tenant_id || idempotency_key, X'00') = 0
        AND replace(replace(replace(tenant_id || ' ' || idempotency_key, X'EFBFBD', ''),
            X'EFBFBE', ''), X'EFBFBF', '') NOT GLOB CAST(X'2A5B012D1F7F2DC29FEFBFBD5D2A' AS TEXT))
);

-- 17966be
CREATE TABLE IF NOT EXISTS bookings (
    id INTEGER PRIMARY KEY
        CONSTRAINT "id is a number from 1 to 2^53 - 1" CHECK (id BETWEEN 1 AND 9007199254740991),
    tenant_id TEXT NOT NULL,
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (start_time_utc IS strftime('%Y-%m-%dT%H:%M:%SZ', start_time_utc, '+0 seconds')
            AND start_time_utc >= '0001'),
    idempotency_key TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds') AND created_at >= '0001'),
    UNIQUE (tenant_id, start_time_utc),
    UNIQUE (idempotency_key),
    CONSTRAINT "tenant_id and idempotency_key are text of 1 to 255 characters without white space at either end"
    CHECK (length(tenant_id) BETWEEN 1 AND 255 AND length(idempotency_key) BETWEEN 1 AND 255
        AND tenant_id = trim(tenant_id, CAST(X'20C2A0E19A80E28080E28081E28082E28083E28084E28085E28086E28087E28088E28089E2808AE280A8E280A9E280AFE2819FE38080' AS TEXT))
        AND idempotency_key = trim(idempotency_key, CAST(X'20C2A0E19A80E28080E28081E28082E28083E28084E28085E28086E28087E28088E28089E2808AE280A8E280A9E280AFE2819FE38080' AS TEXT))),
    CONSTRAINT "tenant_id and idempotency_key have no control characters and no lone surrogates"
    CHECK (instr(tenant_id || idempotency_key, X'00') = 0
        AND replace(replace(replace(tenant_id || ' ' || idempotency_key, CAST(X'EFBFBD' AS TEXT), ''),
            CAST(X'EFBFBE' AS TEXT), ''), CAST(X'EFBFBF' AS TEXT), '') NOT GLOB CAST(X'2A5B012D1F7F2DC29FEFBFBD5D2A' AS TEXT))
);

-- 2f7fe71
CREATE TABLE IF NOT EXISTS bookings (
    id INTEGER PRIMARY KEY AUTOINCREMENT
        CONSTRAINT "id is a number from 1 to 2^53 - 1" CHECK (id BETWEEN 1 AND 9007199254740991),
    tenant_id TEXT NOT NULL,
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (start_time_utc IS strftime('%Y-%m-%dT%H:%M:%SZ', start_time_utc, '+0 seconds')
            AND start_time_utc >= '0001'),
    idempotency_key TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds') AND created_at >= '0001'),
    UNIQUE (tenant_id, start_time_utc),
    UNIQUE (idempotency_key),
    CONSTRAINT "tenant_id and idempotency_key are text of 1 to 255 characters without white space at either end"
    CHECK (length(tenant_id) BETWEEN 1 AND 255 AND length(idempotency_key) BETWEEN 1 AND 255
        AND tenant_id = trim(tenant_id, CAST(X'20C2A0E19A80E28080E28081E28082E28083E28084E28085E28086E28087E28088E28089E2808AE280A8E280A9E280AFE2819FE38080' AS TEXT))
        AND idempotency_key = trim(idempotency_key, CAST(X'20C2A0E19A80E28080E28081E28082E28083E28084E28085E28086E28087E28088E28089E2808AE280A8E280A9E280AFE2819FE38080' AS TEXT))),
    CONSTRAINT "tenant_id and idempotency_key have no control characters"
    CHECK (instr(tenant_id || idempotency_key, X'00') = 0
        AND tenant_id || idempotency_key NOT GLOB CAST(X'2A5B012D1F7F2DC29F5D2A' AS TEXT)),
    CONSTRAINT "tenant_id and idempotency_key have no lone surrogates"
    CHECK (replace(replace(replace(tenant_id || ' ' || idempotency_key, CAST(X'EFBFBD' AS TEXT), ''),
        CAST(X'EFBFBE' AS TEXT), ''), CAST(X'EFBFBF' AS TEXT), '') NOT GLOB CAST(X'2AEFBFBD2A' AS TEXT))
);

-- 0bf7af6
CREATE TABLE IF NOT EXISTS bookings (
    id INTEGER PRIMARY KEY AUTOINCREMENT
        CONSTRAINT "id is a number from 1 to 2^53 - 1"
        CHECK (id BETWEEN 1 AND 9007199254740991),
    tenant_id TEXT NOT NULL
        CONSTRAINT "tenant_id is text of 1 to 255 characters, without control characters or white space at its ends"
        CHECK (typeof(tenant_id) = 'text' AND length(tenant_id) BETWEEN 1 AND 255
            AND instr(tenant_id, char(0)) = 0
            AND tenant_id NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*'
            AND tenant_id = trim(tenant_id, char(32, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198, 8199, 8200,
                8201, 8202, 8232, 8233, 8239, 8287, 12288))
            AND replace(replace(replace(tenant_id, char(65533), ''), char(65534), ''), char(65535), '')
                NOT GLOB '*' || char(65533) || '*'),
    start_time_utc TEXT NOT NULL
        CONSTRAINT "start_time_utc is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (start_time_utc IS strftime('%Y-%m-%dT%H:%M:%SZ', start_time_utc, '+0 seconds')
            AND start_time_utc >= '0001'),
    idempotency_key TEXT NOT NULL
        CONSTRAINT "idempotency_key is text of 1 to 255 characters, without control characters or white space at its ends"
        CHECK (typeof(idempotency_key) = 'text' AND length(idempotency_key) BETWEEN 1 AND 255
            AND instr(idempotency_key, char(0)) = 0
            AND idempotency_key NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*'
            AND idempotency_key = trim(idempotency_key, char(32, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198,
                8199, 8200, 8201, 8202, 8232, 8233, 8239, 8287, 12288))
            AND replace(replace(replace(idempotency_key, char(65533), ''), char(65534), ''), char(65535), '')
                NOT GLOB '*' || char(65533) || '*'),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        CONSTRAINT "created_at is an instant spelled like 2026-01-01T10:00:00Z"
        CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 seconds')
            AND created_at >= '0001'),
    UNIQUE (tenant_id, start_time_utc),
    UNIQUE (idempotency_key)
);

-- node
CREATE TABLE bookings (id INTEGER PRIMARY KEY AUTOINCREMENT, tenant_id TEXT NOT NULL, start_time_utc TEXT NOT NULL,
    idempotency_key TEXT NOT NULL, created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    UNIQUE (tenant_id, start_time_utc), UNIQUE (idempotency_key));
