//! Every metric, defined once.

use std::sync::OnceLock;
use std::time::SystemTime;

use metrics::{
    Counter, Gauge, Histogram, Unit, describe_counter, describe_gauge, describe_histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

macro_rules! metric_names {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*
    };
}

metric_names! {
    /// Connections open now, by listener.
    CONNECTIONS = "runwire_connections";
    /// Connections refused at the limit.
    CONNECTIONS_REFUSED = "runwire_connections_refused_total";
    /// Requests of an HTTP/2 connection refused at the limit of connections.
    REQUESTS_REFUSED = "runwire_requests_refused_total";
    /// Sockets whose client takes nothing of what is written to it now, by listener.
    SOCKETS_STALLED = "runwire_sockets_stalled";
    /// Sockets cut, by listener and why: `stalled` (took nothing) or `dead` (answered nothing).
    SOCKETS_CUT = "runwire_sockets_cut_total";
    /// Long-polls held now, by feed.
    HOLDS = "runwire_holds";
    /// Row changes decoded from the stream.
    CHANGES = "runwire_changes_decoded_total";
    /// Answers that carried a change, by feed.
    DELIVERIES = "runwire_deliveries_total";
    /// From the commit to the answer being handed to the socket, in seconds.
    DELIVERY_LATENCY = "runwire_commit_to_socket_seconds";
    /// Answers that told a client to start again.
    REFETCHES = "runwire_must_refetch_total";
    /// Snapshots answered from memory.
    SNAPSHOTS_FROM_MEMORY = "runwire_snapshots_from_memory_total";
    /// Snapshot queries sent to the database.
    SNAPSHOT_QUERIES = "runwire_snapshot_queries_total";
    /// Snapshot queries that had to be repeated, since they did not show what the window had forgotten.
    SNAPSHOT_REPEATS = "runwire_snapshot_repeats_total";
    /// How far the stream is behind the server's durable log, in bytes.
    LAG_BYTES = "runwire_replication_lag_bytes";
    /// For how long the stream has been behind, in seconds.
    LAG_SECONDS = "runwire_replication_lag_seconds";
    /// WAL that the slot makes the server keep, in bytes.
    RETAINED_WAL = "runwire_slot_retained_wal_bytes";
    /// Whether the slot is attached.
    ATTACHED = "runwire_replication_attached";
    /// How often the stream had to start anew.
    RESETS = "runwire_replication_resets_total";
    /// Memory that the window takes, in bytes.
    WINDOW_BYTES = "runwire_window_bytes";
    /// Changes in the window.
    WINDOW_CHANGES = "runwire_window_changes";
    /// Runs whose tags the stream left out and that nobody has set out to read.
    UNTOLD_RUNS = "runwire_untold_runs";
    /// Runs whose tags the stream left out and that were read.
    TAGS_READ = "runwire_tags_read_total";
    /// Tags that are remembered beyond the window, in bytes.
    TAG_BYTES = "runwire_tag_bytes";
    /// Memory that bodies take, kept for sharing or on their way, in bytes.
    BODY_BYTES = "runwire_body_bytes";
    /// Chunks of long lists that wait to be fetched, in bytes.
    CHUNK_BYTES = "runwire_chunk_bytes";
    /// Lists that were longer than an answer may be.
    LISTS_TRUNCATED = "runwire_lists_truncated_total";
    /// Feeds that somebody waits on now.
    WAITED_TOPICS = "runwire_waited_topics";
    /// What is in use of a limit, in places or bytes, by limit.
    LIMIT_USED = "runwire_limit_used";
    /// Requests that wait at a limit, by limit.
    LIMIT_WAITING = "runwire_limit_waiting";
    /// Requests refused at a limit, by limit.
    LIMIT_REFUSED = "runwire_limit_refused_total";
    /// Addresses or credentials of which is remembered how much of their rate they have used.
    RATE_KEYS = "runwire_rate_keys";
    /// Requests that no rate counted, since too many addresses or credentials were remembered.
    RATE_UNCOUNTED = "runwire_rate_uncounted_total";
    /// Whether Redis answers, so that limits hold across gateways.
    FLEET_CONNECTED = "runwire_fleet_connected";
    /// Gateways that share limits by way of Redis.
    FLEET_GATEWAYS = "runwire_fleet_gateways";
    /// TLS handshakes that came to nothing, by why: `timeout` or `refused`.
    TLS_FAILED = "runwire_tls_handshakes_failed_total";
    /// Credentials that were judged, since they were not known: by what is in memory, by a query, or
    /// refused.
    VERDICTS = "runwire_credentials_judged_total";
    /// Credentials that wait for the stream or the database now.
    LOOKUPS_WAITING = "runwire_credential_lookups_waiting";
    /// Credentials that nobody could judge because of a limit: `budget`, `places`, or `stale` (the
    /// database did not show what the stream had brought).
    LOOKUPS_REFUSED = "runwire_credential_lookups_refused_total";
    /// Credentials that ended while they were known: revoked, expired early, or changed.
    LEASES_ENDED = "runwire_credentials_ended_total";
    /// Memory that environments and keys take, in bytes; 0 while they are not held.
    KEY_BYTES = "runwire_key_bytes";
    /// How often the environments and keys were loaded.
    KEY_LOADS = "runwire_key_loads_total";
    /// Whether the publication carries the tables of keys.
    KEYS_PUBLISHED = "runwire_keys_published";
    /// Streams that somebody reads now, each by one tail.
    STREAM_TAILS = "runwire_stream_tails";
    /// Readers of streams now.
    STREAM_READERS = "runwire_stream_readers";
    /// Readers that read the store, since what they need is not in memory.
    STREAM_CATCH_UPS = "runwire_stream_catch_ups_total";
    /// Pages that were read for them, each for all who needed it.
    STREAM_PAGES_READ = "runwire_stream_pages_read_total";
    /// Readers cut by a fault of the store.
    STREAM_FAULTS = "runwire_stream_faults_total";
    /// Whether the store of streams answers.
    STREAM_STORE_READY = "runwire_stream_store_ready";
    /// Writers' sessions that were reset, since their token or its key had ended.
    STREAM_SESSIONS_ENDED = "runwire_stream_sessions_ended_total";
    /// Recent chunks in memory, of all streams that are read, in bytes.
    STREAM_RECENT_BYTES = "runwire_stream_recent_bytes";
    /// What is free on the disk of the stream store, in bytes.
    STREAM_FREE_BYTES = "runwire_stream_free_bytes";
}

/// Installs the metrics recorder of this process, once, and describes every metric.
///
/// The handle renders them in Prometheus' text form; it is the same for every server of a process.
pub fn install_metrics() -> PrometheusHandle {
    static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
    let install = || {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(DELIVERY_LATENCY.to_owned()), &LATENCIES)
            .unwrap_or_else(|_| PrometheusBuilder::new()) // fails only for an empty list
            .build_recorder();
        let handle = recorder.handle();
        // An error means that the program around us has a recorder of its own.
        let _ = metrics::set_global_recorder(recorder);
        describe();
        handle
    };
    INSTALLED.get_or_init(install).clone()
}

/// The bounds of the latencies that are told apart, in seconds.
const LATENCIES: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0];

fn describe() {
    describe_gauge!(CONNECTIONS, "Connections open now, by listener");
    describe_counter!(CONNECTIONS_REFUSED, "Connections refused at the limit");
    describe_counter!(REQUESTS_REFUSED, "Requests of HTTP/2 connections refused at the limit");
    describe_gauge!(SOCKETS_STALLED, "Sockets whose client takes nothing now, by listener");
    describe_counter!(SOCKETS_CUT, "Sockets cut, by listener and why");
    describe_gauge!(HOLDS, "Long-polls held now, by feed");
    describe_counter!(CHANGES, "Row changes decoded from the stream");
    describe_counter!(DELIVERIES, "Answers that carried a change, by feed");
    describe_histogram!(
        DELIVERY_LATENCY,
        Unit::Seconds,
        "From the commit to the answer being handed to the socket"
    );
    describe_counter!(REFETCHES, "Answers that told a client to start again");
    describe_counter!(SNAPSHOTS_FROM_MEMORY, "Snapshots answered from memory");
    describe_counter!(SNAPSHOT_QUERIES, "Snapshot queries sent to the database");
    describe_counter!(SNAPSHOT_REPEATS, "Snapshot queries that had to be repeated");
    describe_gauge!(LAG_BYTES, Unit::Bytes, "How far the stream is behind the durable log");
    describe_gauge!(LAG_SECONDS, Unit::Seconds, "For how long the stream has been behind");
    describe_gauge!(RETAINED_WAL, Unit::Bytes, "WAL that the slot makes the server keep");
    describe_gauge!(ATTACHED, "Whether the slot is attached");
    describe_counter!(RESETS, "How often the stream had to start anew");
    describe_gauge!(WINDOW_BYTES, Unit::Bytes, "Memory that the window takes");
    describe_gauge!(WINDOW_CHANGES, "Changes in the window");
    describe_gauge!(UNTOLD_RUNS, "Runs whose tags the stream left out and that wait to be read");
    describe_counter!(TAGS_READ, "Runs whose tags the stream left out and that were read");
    describe_gauge!(TAG_BYTES, Unit::Bytes, "Tags that are remembered beyond the window");
    describe_gauge!(BODY_BYTES, Unit::Bytes, "Memory that bodies take, kept or on their way");
    describe_gauge!(CHUNK_BYTES, Unit::Bytes, "Chunks of long lists that wait to be fetched");
    describe_counter!(LISTS_TRUNCATED, "Lists that were longer than an answer may be");
    describe_gauge!(WAITED_TOPICS, "Feeds that somebody waits on now");
    describe_gauge!(LIMIT_USED, "What is in use of a limit, in places or bytes, by limit");
    describe_gauge!(LIMIT_WAITING, "Requests that wait at a limit, by limit");
    describe_counter!(LIMIT_REFUSED, "Requests refused at a limit, by limit");
    describe_gauge!(RATE_KEYS, "Addresses or credentials whose rate is remembered");
    describe_counter!(RATE_UNCOUNTED, "Requests that no rate counted, for want of room");
    describe_gauge!(FLEET_CONNECTED, "Whether Redis answers, so that limits hold across gateways");
    describe_gauge!(FLEET_GATEWAYS, "Gateways that share limits by way of Redis");
    describe_counter!(TLS_FAILED, "TLS handshakes that came to nothing, by why");
    describe_counter!(VERDICTS, "Credentials judged, from memory, by a query, or refused");
    describe_gauge!(LOOKUPS_WAITING, "Credentials that wait for the stream or the database");
    describe_counter!(LOOKUPS_REFUSED, "Credentials that nobody could judge, by limit");
    describe_counter!(LEASES_ENDED, "Credentials that ended while they were known");
    describe_gauge!(KEY_BYTES, Unit::Bytes, "Memory that environments and keys take");
    describe_counter!(KEY_LOADS, "How often the environments and keys were loaded");
    describe_gauge!(KEYS_PUBLISHED, "Whether the publication carries the tables of keys");
    describe_gauge!(STREAM_TAILS, "Streams that somebody reads now, each by one tail");
    describe_gauge!(STREAM_READERS, "Readers of streams now");
    describe_counter!(STREAM_CATCH_UPS, "Readers that had to read the store");
    describe_counter!(STREAM_PAGES_READ, "Pages that were read from the store for them");
    describe_counter!(STREAM_FAULTS, "Readers cut by a fault of the store");
    describe_gauge!(STREAM_STORE_READY, "Whether the store of streams answers, as far as is known");
    describe_counter!(
        STREAM_SESSIONS_ENDED,
        "Writers' sessions reset as their token or its key ended"
    );
    describe_gauge!(STREAM_RECENT_BYTES, Unit::Bytes, "Recent chunks of streams in memory");
    describe_gauge!(STREAM_FREE_BYTES, Unit::Bytes, "What is free on the stream store's disk");
}

/// What a feed counts with every answer, looked up once.
#[derive(Clone, Debug)]
pub struct FeedMetrics {
    /// Long-polls held now.
    pub holds: Gauge,
    deliveries: Counter,
    latency: Histogram,
}

impl FeedMetrics {
    /// Those of the feed of this name.
    pub fn of(feed: &'static str) -> Self {
        FeedMetrics {
            holds: metrics::gauge!(HOLDS, "feed" => feed),
            deliveries: metrics::counter!(DELIVERIES, "feed" => feed),
            latency: metrics::histogram!(DELIVERY_LATENCY, "feed" => feed),
        }
    }

    /// An answer goes out whose newest change committed then, in microseconds since 1970 by the
    /// database's clock.
    pub fn delivered(&self, committed_at: i64) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let passed = now.as_micros() as i64 - committed_at;
        self.deliveries.increment(1);
        self.latency.record(passed.max(0) as f64 / 1e6);
    }
}
