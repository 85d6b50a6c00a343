-- Schema 3. Spans that have not ended, as their processes announced them, and the processes'
-- heartbeats. Both are states, not records: a later announcement or heartbeat takes the place of
-- the earlier one, and a span leaves the table in the transaction that stores its end.

CREATE TABLE processes (
    id         INTEGER PRIMARY KEY,
    key        TEXT NOT NULL UNIQUE,    -- service.instance.id, or host and process id
    time       INTEGER NOT NULL,        -- latest sign of life, by the process's clock
    arrived_ms INTEGER NOT NULL,        -- when that arrived
    sequence   INTEGER NOT NULL,        -- of the latest heartbeat; 0 before the first
    ended      INTEGER NOT NULL         -- 1: said that its latest heartbeat is its last
) STRICT;

CREATE TABLE open_spans (
    trace          INTEGER NOT NULL,    -- traces.id
    span_id        BLOB NOT NULL,       -- 8 bytes
    parent_span_id BLOB,                -- 8 bytes, NULL for a root
    operation      INTEGER NOT NULL,    -- operations.id, counted there as a span
    resource       INTEGER NOT NULL,    -- resources.id, counted there
    scope          INTEGER NOT NULL,    -- scopes.id, counted there
    start_time     INTEGER NOT NULL,
    input_tokens   INTEGER,             -- as in spans
    output_tokens  INTEGER,
    cost_usd       REAL,
    details        BLOB NOT NULL,       -- as in spans
    process        INTEGER NOT NULL,    -- processes.id
    revision       INTEGER NOT NULL,    -- number of the announcement, from 1
    misses         INTEGER NOT NULL,    -- heartbeats in a row that did not list the span
    missing_since  INTEGER,             -- time of the first of these heartbeats
    PRIMARY KEY (trace, span_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX open_spans_by_process ON open_spans (process, misses);

INSERT INTO row_counts VALUES ('open_spans', 0), ('open_spans_refused', 0);
