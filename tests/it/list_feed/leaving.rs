//! Runs that go from a list: their end, and a tag that is taken from them (`runs-and-auth.md`, 10.1).

use super::changes::{IDENTITIES, add_tag, database_of, news, row_of};
use super::{RUNS, tagged};
use crate::support::feed::{Feed, assert_complete, members, told};
use crate::support::gateway::Gateway;
use crate::support::runs::{delete, set_metadata, update};

#[tokio::test]
async fn the_end_of_a_run_is_told_and_it_does_not_come_back() {
    for identity in IDENTITIES {
        let database = database_of(identity).await;
        let (pool, environment) = (&database.pool, database.seeded.production);
        let gateway = Gateway::start(&database.url, &[]).await;
        let feed = Feed::new(&gateway, &format!("{RUNS}?tags=a"), environment.secret_key);
        let from = feed.open().await;
        tagged(pool, environment.id, "run_1", &["a"]).await;
        tagged(pool, environment.id, "run_2", &["a"]).await;
        let mut from = news(&feed, &from).await;
        if told(&from).len() == 1 {
            from = news(&feed, &from).await;
        }
        let (ended, ()) = tokio::join!(feed.live(&from), delete(pool, "run_1"));
        assert_complete(&ended, true);
        assert_eq!(
            ended.text,
            r#"[{"key":"\"public\".\"TaskRun\"/\"1\"","value":{"id":"1"},"headers":{"operation":"delete"}},{"headers":{"control":"up-to-date"}}]"#
        );
        assert_eq!(members(&feed.anew().await), ["2"]);
        set_metadata(pool, "run_2", 1).await;
        assert_eq!(told(&news(&feed, &ended).await), ["update 2"]);
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_run_that_loses_a_tag_is_gone_from_the_list_and_enters_again_whole() {
    for identity in IDENTITIES {
        let database = database_of(identity).await;
        let (pool, environment) = (&database.pool, database.seeded.production);
        let gateway = Gateway::start(&database.url, &[]).await;
        let feed = Feed::new(&gateway, &format!("{RUNS}?tags=a,b"), environment.secret_key);
        let from = feed.open().await;
        tagged(pool, environment.id, "run_1", &["a", "b"]).await;
        let from = news(&feed, &from).await;
        update(pool, "run_1", r#""runTags" = '{b}'"#).await;
        let from = news(&feed, &from).await;
        assert_eq!(told(&from), ["delete 1"], "{identity}");
        set_metadata(pool, "run_1", 1).await;
        add_tag(pool, "run_1", "a").await;
        let from = news(&feed, &from).await;
        assert_eq!(told(&from), ["insert 1"], "{identity}");
        let (_, row) = from.row();
        assert_eq!(row.as_object(), Some(&row_of(&feed.anew().await, "1")));
        // Out and in again between two polls leaves it what it was: in, and with what changed while
        // it was out.
        update(pool, "run_1", r#""runTags" = '{b}'"#).await;
        update(pool, "run_1", r#""isTest" = true"#).await;
        update(pool, "run_1", r#""runTags" = '{}'"#).await;
        update(pool, "run_1", "output = '1'").await;
        update(pool, "run_1", r#""runTags" = '{b,a}'"#).await;
        update(pool, "run_1", "number = 9").await;
        let mut row = row;
        let mut from = from;
        while row["number"] != "9" {
            from = news(&feed, &from).await;
            for (operation, change) in from.rows() {
                assert_ne!((operation.as_str(), change["number"].as_str()), ("delete", Some("9")));
                if operation == "update" {
                    let change = change.as_object().unwrap().clone();
                    row.as_object_mut().unwrap().extend(change);
                } else if operation == "insert" {
                    row = change;
                }
            }
        }
        assert_eq!(row.as_object(), Some(&row_of(&feed.anew().await, "1")));
        gateway.stop().await;
    }
}
