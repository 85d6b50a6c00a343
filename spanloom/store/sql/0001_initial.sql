-- Schema 1. Times are nanoseconds since the Unix epoch, `arrived_ms` milliseconds; a time that
-- 63 bits cannot hold is kept exactly in the row's message and capped in its column.
-- References are not declared as foreign keys: only the writer writes, in whole transactions,
-- and checking each row would cost a lookup per reference.

CREATE TABLE services (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE          -- service.name of a resource
) STRICT;

-- Who produced telemetry. A process sends the same resource with every batch: stored once.
CREATE TABLE resources (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, so readers may cache it
    digest  BLOB NOT NULL UNIQUE,      -- blake2b-16 of `message`
    service INTEGER NOT NULL,          -- services.id
    message BLOB NOT NULL              -- OTLP ResourceSpans without spans: resource, schema URL
) STRICT;

CREATE TABLE scopes (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    digest  BLOB NOT NULL UNIQUE,      -- blake2b-16 of `message`
    message BLOB NOT NULL              -- OTLP ScopeSpans without spans: scope, schema URL
) STRICT;

-- Span names by service and kind: what a span row would otherwise repeat.
CREATE TABLE operations (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    service    INTEGER NOT NULL,       -- services.id
    name       TEXT NOT NULL,          -- span name
    kind       INTEGER NOT NULL,       -- SpanKind as on the wire
    span_count INTEGER NOT NULL,       -- stored spans; at 0 the operation is no longer listed
    UNIQUE (service, name, kind)
) STRICT;

-- Trace ids are random. This small table takes the random inserts, so that spans and their
-- index can be appended to: a trace gets the next number when its first span arrives.
CREATE TABLE traces (
    id         INTEGER PRIMARY KEY,
    trace_id   BLOB NOT NULL UNIQUE,   -- 16 bytes
    arrived_ms INTEGER NOT NULL        -- when its latest span arrived, to the second: retention
) STRICT;
CREATE INDEX traces_by_arrival ON traces (arrived_ms);

CREATE TABLE spans (
    id             INTEGER PRIMARY KEY, -- ascending by arrival; id >> 10 is its block
    trace          INTEGER NOT NULL,    -- traces.id
    span_id        BLOB NOT NULL,       -- 8 bytes
    parent_span_id BLOB,                -- 8 bytes, NULL for a root
    operation      INTEGER NOT NULL,    -- operations.id: service, name, kind
    resource       INTEGER NOT NULL,    -- resources.id
    scope          INTEGER NOT NULL,    -- scopes.id
    start_time     INTEGER NOT NULL,
    end_time       INTEGER NOT NULL,
    status         INTEGER NOT NULL,    -- StatusCode as on the wire
    incomplete     INTEGER NOT NULL,    -- 1: marked spanloom.incomplete, gives way to a final one
    -- Usage of an LLM span, so that a trace list need not read any message; NULL elsewhere.
    input_tokens   INTEGER,
    output_tokens  INTEGER,
    cost_usd       REAL,
    details        BLOB NOT NULL        -- OTLP Span with every field that has no column here
) STRICT;
CREATE UNIQUE INDEX spans_by_trace ON spans (trace, span_id);

-- Search. 1,024 spans that arrived one after the other form a block, which knows its bounds and
-- the set of its tags (attributes, service, operation, kind, error). A search goes through the
-- blocks that can match, newest first, and looks only at their spans. An index with a row for
-- each attribute of each span would be many times larger and be written at random.
CREATE TABLE blocks (
    id           INTEGER PRIMARY KEY,   -- spans.id >> 10
    min_start    INTEGER NOT NULL,
    max_start    INTEGER NOT NULL,
    min_duration INTEGER NOT NULL,
    max_duration INTEGER NOT NULL
) STRICT;
CREATE INDEX blocks_by_start ON blocks (max_start);

CREATE TABLE block_tags (
    block INTEGER NOT NULL,             -- blocks.id
    tag   INTEGER NOT NULL,             -- CRC-32 of "key=value"; a collision costs time only
    PRIMARY KEY (block, tag)
) STRICT, WITHOUT ROWID;

CREATE TABLE logs (
    id         INTEGER PRIMARY KEY,     -- ascending by arrival
    trace_id   BLOB,                    -- 16 bytes, NULL outside a trace
    time       INTEGER NOT NULL,        -- the record's own time, else when it was observed
    arrived_ms INTEGER NOT NULL,
    internal   INTEGER NOT NULL,        -- 1: a `spanloom.*` event, not shown among the log lines
    resource   INTEGER NOT NULL,        -- resources.id
    scope      INTEGER NOT NULL,        -- scopes.id
    digest     BLOB NOT NULL,           -- blake2b-16 of resource, scope and message
    message    BLOB NOT NULL            -- OTLP LogRecord
) STRICT;
-- A record sent again is stored once. The time in front keeps inserts at the end of the index.
CREATE UNIQUE INDEX logs_once ON logs (time, digest);
CREATE INDEX logs_by_trace ON logs (trace_id, time) WHERE trace_id IS NOT NULL;

-- What the points of one metric from one producer share.
CREATE TABLE metrics (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    digest   BLOB NOT NULL UNIQUE,      -- blake2b-16 of resource, scope and message
    name     TEXT NOT NULL,
    service  INTEGER NOT NULL,          -- services.id
    resource INTEGER NOT NULL,          -- resources.id
    scope    INTEGER NOT NULL,          -- scopes.id
    message  BLOB NOT NULL              -- OTLP Metric without points
) STRICT;
CREATE INDEX metrics_by_name ON metrics (name, service);

CREATE TABLE metric_points (
    id         INTEGER PRIMARY KEY,     -- ascending by arrival
    metric     INTEGER NOT NULL,        -- metrics.id
    time       INTEGER NOT NULL,
    arrived_ms INTEGER NOT NULL,
    digest     BLOB NOT NULL,           -- blake2b-8 of the message
    message    BLOB NOT NULL            -- OTLP Metric with this one point and nothing else
) STRICT;
CREATE UNIQUE INDEX metric_points_once ON metric_points (metric, time, digest);

-- Counting rows takes seconds at 10 M; these are kept up to date in each transaction.
CREATE TABLE row_counts (
    name  TEXT PRIMARY KEY,
    count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO row_counts VALUES ('spans', 0), ('traces', 0), ('logs', 0), ('metric_points', 0);
