//! Databases of the throw-away cluster.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::postgres::Postgres;

/// Why a database could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Names go into SQL and URLs as they are.
    #[error("{0:?} is no database name: lower-case letters, digits and _ only")]
    Name(String),
    /// The database said no.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl Postgres {
    /// Makes a database with Trigger.dev's tables unless it exists, and returns its URL.
    pub async fn create_database(&self, name: &str) -> Result<String, DatabaseError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
            return Err(DatabaseError::Name(name.to_owned()));
        }
        let mut server = PgConnection::connect(&self.url("postgres")).await?;
        let exists: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
                .bind(name)
                .fetch_one(&mut server)
                .await?;
        if !exists {
            let create = AssertSqlSafe(format!("CREATE DATABASE \"{name}\""));
            sqlx::raw_sql(create).execute(&mut server).await?;
        }
        server.close().await?;

        let url = self.url(name);
        let mut database = PgConnection::connect(&url).await?;
        let loaded: bool =
            sqlx::query_scalar(r#"SELECT to_regclass('public."TaskRun"') IS NOT NULL"#)
                .fetch_one(&mut database)
                .await?;
        if !loaded {
            sqlx::raw_sql(include_str!("schema.sql")).execute(&mut database).await?;
        }
        database.close().await?;
        Ok(url)
    }
}
