//! The oldest and the newest Postgres that are supported, from the pinned packages.

use runwire::dev::{Options, Postgres};

use super::{random, toast, walsender};

async fn on(major: u32) {
    let options = Options { major: Some(major), ..Options::default() };
    let postgres = Postgres::start(options).await.expect("start Postgres");
    assert_eq!(postgres.major(), major);
    toast::unchanged_is_never_null(&postgres).await;
    random::streamed_as_queried(&postgres).await;
    walsender::temporary_starts_anew(&postgres).await;
    walsender::permanent_goes_on(&postgres).await;
}

#[tokio::test]
async fn version_14_streams_like_the_others() {
    on(14).await;
}

#[tokio::test]
async fn version_18_streams_like_the_others() {
    on(18).await;
}
