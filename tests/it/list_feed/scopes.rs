//! Which scopes open a list (`runs-and-auth.md`, 14).

use super::{RUNS, tagged};
use crate::support::cluster::fresh_database;
use crate::support::feed::{Feed, members};
use crate::support::gateway::Gateway;
use crate::support::token::public;

#[tokio::test]
async fn scopes_open_lists_as_the_table_says() {
    let database = fresh_database().await;
    let (pool, seeded) = (&database.pool, database.seeded);
    tagged(pool, seeded.production.id, "run_1", &["t", "u", "env:staging"]).await;
    let gateway = Gateway::start(&database.url, &["--hold=50ms"]).await;
    // For no tags, for `t`, for `t,u`, and for `u`.
    let queries = ["", "?tags=t", "?tags=t,u", "?tags=u"];
    let (all, none) = ([true; 4], [false; 4]);
    let of_batch = format!("read:batch:{}", seeded.batch);
    let cases = [
        (&["admin"][..], all),
        (&["read:all"], all),
        (&["*:all"], all),
        (&["read:all:x"], all),
        (&["read:runs"], all),
        (&["*:runs"], all),
        (&["read:runs:"], all),
        (&["read:tags"], all),
        (&["read:tags:"], all),
        (&["read:tags:t"], [false, true, true, false]),
        (&["read:tags:u"], [false, false, true, true]),
        (&["read:tags:u", "read:tags:t"], [false, true, true, true]),
        (&["write:runs", "read:tags:t"], [false, true, true, false]),
        (&["read:tags:T"], none),
        (&["read:tags: t"], none),
        (&["read:tags:env"], none),
        (&["read:runs:run_1"], none),
        (&["read:tasks"], none),
        (&["read:tasks:hello"], none),
        (&["read:batch"], none),
        (&[of_batch.as_str()], none),
        (&["write:runs"], none),
        (&["write:tags:t"], none),
        (&["trigger:tasks:hello"], none),
        (&["read:sessions:t"], none),
        (&["read:inputStreams:run_1"], none),
        (&["read"], none),
        (&["admin:runs"], none),
        (&["all"], none),
        (&[], none),
    ];
    for (scopes, opened) in cases {
        let token = public(seeded.production, scopes);
        for (query, opens) in queries.iter().zip(opened) {
            let feed = Feed::new(&gateway, &format!("{RUNS}{query}"), &token);
            let answer = feed.open().await;
            let status = if opens { 200 } else { 403 };
            assert_eq!(answer.status, status, "{scopes:?} for {query}: {}", answer.text);
            if opens {
                assert!(members(&answer).contains(&"1".to_owned()));
                assert_eq!(feed.live(&answer).await.status, 200, "a poll by {scopes:?}");
            } else {
                assert_eq!(
                    answer.text,
                    r#"{"error":"Unauthorized","code":"unauthorized","param":"access_token","type":"authorization"}"#
                );
            }
        }
    }
    // The id of a tag's scope holds colons.
    let token = public(seeded.production, &["read:tags:env:staging"]);
    let feed = Feed::new(&gateway, &format!("{RUNS}?tags=env:staging"), &token);
    assert_eq!(members(&feed.open().await), ["1"]);
    // A poll is asked who sends it, whatever its handle says.
    let path = format!("{RUNS}?tags=t");
    let from = Feed::new(&gateway, &path, seeded.production.secret_key).open().await;
    for (token, status) in [
        (public(seeded.production, &["read:tags:t"]), 200),
        (public(seeded.production, &["read:tags:u"]), 403),
        // Another environment's: another feed, with nothing of the first in it.
        (public(seeded.rival, &["read:tags:t"]), 409),
        ("tr_prod_nonsense".to_owned(), 401),
    ] {
        assert_eq!(Feed::new(&gateway, &path, &token).live(&from).await.status, status, "{token}");
    }
    gateway.stop().await;
}
