-- The tables of the store. Rows are appended; nothing here is ever updated, altered or deleted.
-- One statement each, separated by a line that ends with a semicolon; run in the store's own database.
--
-- Partitions are days of the session's start, so that retention drops whole sessions. Rows lie in session order: agents
-- send their history again and again, and next to each other the copies compress many times better than in time order.
-- The deduplication window makes a repeated batch (same token) a no-op on an unreplicated table.

CREATE TABLE IF NOT EXISTS schema_version
(
    version UInt32,
    applied DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = MergeTree ORDER BY version
SETTINGS non_replicated_deduplication_window = 100;

-- The state of a session. The row with the highest seq is the truth.
CREATE TABLE IF NOT EXISTS sessions
(
    session_id UUID,
    seq UInt32,
    started DateTime64(9, 'UTC'),
    ended DateTime64(9, 'UTC'),
    ending LowCardinality(String),
    node LowCardinality(String),
    source LowCardinality(String),
    client_address LowCardinality(String),
    client_port UInt16,
    server_address LowCardinality(String),
    server_port UInt16,
    client_ip IPv6 MATERIALIZED toIPv6OrDefault(client_address),
    server_ip IPv6 MATERIALIZED toIPv6OrDefault(server_address),
    transport LowCardinality(String),
    protocol LowCardinality(String),
    issuer LowCardinality(String),
    subject LowCardinality(String),
    client LowCardinality(String),
    act Array(LowCardinality(String)),
    groups Array(LowCardinality(String)),
    run_id String CODEC(ZSTD(1)),
    lease_id String CODEC(ZSTD(1)),
    method LowCardinality(String),
    token_sha256 String CODEC(ZSTD(1)),
    coverage LowCardinality(String),
    client_bytes UInt64,
    server_bytes UInt64,
    client_packets UInt64,
    server_packets UInt64,
    messages UInt64,
    findings Array(LowCardinality(String)),
    lane LowCardinality(String),
    attrs String CODEC(ZSTD(3)),
    fields Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    INDEX by_id session_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_run run_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_end ended TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(started)
ORDER BY (started, session_id, seq)
SETTINGS non_replicated_deduplication_window = 10000;

-- `fields` holds the scalar attributes as strings, for search; `attrs` holds all of them, exactly, as JSON. The granules
-- are small: a search reads one for each of its results, and those lie anywhere.
CREATE TABLE IF NOT EXISTS messages
(
    session_id UUID,
    seq UInt32,
    started DateTime64(9, 'UTC'),
    ts DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    end_ts DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    direction LowCardinality(String),
    kind LowCardinality(String),
    protocol LowCardinality(String),
    start UInt64 CODEC(Delta, ZSTD(1)),
    end UInt64 CODEC(Delta, ZSTD(1)),
    search_text String CODEC(ZSTD(3)),
    attrs String CODEC(ZSTD(3)),
    fields Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    reply_to Nullable(UInt64) CODEC(ZSTD(1)),
    flags Array(LowCardinality(String)),
    INDEX by_id session_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_time ts TYPE minmax GRANULARITY 1,
    INDEX by_text lowerUTF8(search_text) TYPE text(tokenizer = 'splitByNonAlpha')
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(started)
ORDER BY (started, session_id, seq)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 1024;

-- The bytes. copy 0 is the stream; higher copies are conflicting overlaps that are kept beside it.
CREATE TABLE IF NOT EXISTS chunks
(
    session_id UUID,
    seq UInt32,
    started DateTime64(9, 'UTC'),
    direction LowCardinality(String),
    offset UInt64 CODEC(Delta, ZSTD(1)),
    size UInt32,
    ts DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    copy UInt32,
    redacted Array(Tuple(UInt32, UInt32)),
    data String CODEC(ZSTD(3)),
    INDEX by_id session_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(started)
ORDER BY (started, session_id, seq)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE TABLE IF NOT EXISTS findings
(
    session_id UUID,
    seq UInt32,
    started DateTime64(9, 'UTC'),
    ts DateTime64(9, 'UTC'),
    kind LowCardinality(String),
    direction LowCardinality(String),
    start UInt64,
    end UInt64,
    text String CODEC(ZSTD(3)),
    attrs String CODEC(ZSTD(3)),
    INDEX by_id session_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(started)
ORDER BY (started, session_id, seq)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE TABLE IF NOT EXISTS events
(
    stream LowCardinality(String),
    position UInt64,
    ts DateTime64(9, 'UTC'),
    kind LowCardinality(String),
    address LowCardinality(String),
    text String CODEC(ZSTD(3)),
    attrs String CODEC(ZSTD(3))
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(ts)
ORDER BY (stream, position)
SETTINGS non_replicated_deduplication_window = 10000;

-- Who looked at what: one row per search, view, reveal, export and lease action of the API.
CREATE TABLE IF NOT EXISTS audit
(
    ts DateTime64(9, 'UTC'),
    actor LowCardinality(String),
    action LowCardinality(String),
    object String CODEC(ZSTD(3))
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(ts)
ORDER BY ts
SETTINGS non_replicated_deduplication_window = 10000;
