//! Run rows: which columns exist, what a row looks like, and the SQL that reads it.

pub mod columns;
pub mod created;
mod flights;
mod lease;
pub mod list;
pub mod many;
mod pace;
pub mod reader;
mod row;
mod shared_read;
pub mod store;
pub mod streams;
pub mod text;
mod together;
pub mod tuple;
