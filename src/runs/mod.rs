//! Run rows: which columns exist, what a row looks like, and the SQL that reads it.

pub mod columns;
pub mod store;
pub mod text;
pub mod tuple;
