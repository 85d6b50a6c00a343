-- Schema 4. What a store needs behind a Collector (`spanloom reap`), where ends of spans are never
-- seen: which spans the latest heartbeat listed, and which ends wait to be sent.

ALTER TABLE processes ADD COLUMN listed BLOB NOT NULL DEFAULT x'';     -- span ids, 8 bytes each
ALTER TABLE open_spans ADD COLUMN heartbeat INTEGER NOT NULL DEFAULT 0; -- the one before it

CREATE TABLE outbox (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: it is acknowledged by number
    message BLOB NOT NULL                       -- OTLP TracesData with one span
) STRICT;
INSERT INTO row_counts VALUES ('outbox', 0);
