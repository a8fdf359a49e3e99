//! Postgres' logical replication stream, turned into committed transactions of run rows.

pub mod change;
