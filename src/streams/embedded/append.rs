//! Appending one record.

use bytes::Bytes;
use s2_common::basin::BasinName;
use s2_common::config::OptionalStreamConfig;
use s2_common::record::{Metered, Record};
use s2_common::stream::{AppendInput, AppendRecord, AppendRecordParts, StreamName};
use s2_lite::backend::Backend;
use s2_lite::backend::error::AppendError;

use super::{ATTEMPTS, Embedded, names, refused};
use crate::streams::store::{StoreError, StreamId};

impl Embedded {
    /// See [`crate::streams::Store::append`].
    pub async fn append(&self, stream: &StreamId, body: Bytes) -> Result<(), StoreError> {
        let record = Record::try_from_parts(Vec::new(), body).map_err(refused)?;
        let parts = AppendRecordParts { timestamp: None, record: Metered::from(record) };
        let record: AppendRecord = parts.try_into().map_err(refused)?;
        let (basin, name) = names(stream)?;
        let opened = self.in_basin(&basin).await?;
        opened.room.require()?;
        let work = async move {
            for _ in 1..ATTEMPTS {
                match append(&opened.backend, &basin, &name, record.clone()).await {
                    Err(AppendError::TransactionConflict(_)) => {}
                    done => return done,
                }
            }
            append(&opened.backend, &basin, &name, record).await
        };
        let done = self.patiently(work).await?;
        done.map_err(|error| StoreError::Unavailable(error.to_string()))
    }
}

async fn append(
    backend: &Backend,
    basin: &BasinName,
    name: &StreamName,
    record: AppendRecord,
) -> Result<(), AppendError> {
    let records = vec![record].try_into();
    // One record that was measured before is a batch.
    let Ok(records) = records else { return Ok(()) };
    let input = AppendInput { records, match_seq_num: None, fencing_token: None };
    let stream =
        backend.open_for_append(basin, name, None, OptionalStreamConfig::default()).await?;
    stream.append(input).await.map(drop)
}
