//! A connection for one statement.

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection as _, Error, Postgres};

/// A connection that goes back to the pool only when its statement has ended well.
///
/// Dropped before that it is closed: whoever got it next would have to wait for the end of that
/// statement, on a dead network for many minutes.
pub(super) struct Lease(Option<PoolConnection<Postgres>>);

impl Lease {
    /// Takes a connection, and waits for one as long as the pool says.
    pub async fn of(pool: &PgPool) -> Result<Lease, Error> {
        Ok(Lease(Some(pool.acquire().await?)))
    }

    /// The connection.
    pub fn connection(&mut self) -> Result<&mut PgConnection, Error> {
        self.0.as_deref_mut().ok_or(Error::PoolClosed)
    }

    /// The statement has ended: the connection can serve others.
    pub fn done(mut self) {
        if let Some(mut connection) = self.0.take() {
            // They grew with the largest row, and would stay so.
            connection.shrink_buffers();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}
