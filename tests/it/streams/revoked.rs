//! A writer's token is worth what the key is worth that it was issued for, wherever it is shown, and so
//! is what it has opened.

use std::time::{Duration, Instant};

use futures_util::stream;
use reqwest::{Body, Client, Response};
use serde_json::json;
use sqlx::Connection as _;

use crate::support::cluster::fresh_database;
use crate::support::gateway::{Gateway, PATIENCE, eventually};
use crate::support::streams::{
    SECRET, SOON, Stand, expect_numbers, order, records, records_of, run, scratch,
};

/// A change that the stream tells of is felt within this, on a machine that does much else.
const AT_ONCE: Duration = Duration::from_secs(3);
const ROTATE: &str =
    r#"UPDATE "RuntimeEnvironment" SET "apiKey" = 'tr_prod_x' WHERE id = 'env_prod'"#;

/// A writer that knows no more than its token.
struct Writer {
    token: String,
    path: String,
}

impl Writer {
    async fn new(stand: &Stand, key: &str) -> Writer {
        let run = stand.run().await;
        let path = format!("/realtime/v1/streams/{run}/self/ai");
        let request = stand.gateway.request("PUT", &path).bearer_auth(key);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 202);
        let header = |name: &str| answer.headers()[name].to_str().expect("ascii").to_owned();
        let path = format!("/s2/v1{}", records_of(&header("x-s2-stream-name")));
        Writer { token: header("x-s2-access-token"), path }
    }

    async fn status(&self, gateway: &Gateway) -> u16 {
        let request = gateway.request("POST", &self.path).bearer_auth(&self.token);
        let request = request.header("content-type", "application/json");
        let body = json!({ "records": [{ "body": "x" }] }).to_string();
        request.body(body).send().await.expect("an answer").status().as_u16()
    }

    /// An append session that says nothing.
    async fn session(&self, gateway: &Gateway) -> Session {
        let client = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
        let silence = stream::pending::<Result<Vec<u8>, std::io::Error>>();
        let request = client.post(format!("{}{}", gateway.url, self.path));
        let request = request.bearer_auth(&self.token).header("content-type", "s2s/proto");
        let answer = request.body(Body::wrap_stream(silence)).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        Session(answer)
    }
}

struct Session(Response);

impl Session {
    /// It is reset: not ended, which would leave its writer waiting.
    async fn is_reset(&mut self, since: Instant) {
        let piece = tokio::time::timeout(AT_ONCE, self.0.chunk()).await;
        let piece = piece.unwrap_or_else(|_| panic!("it goes on after {:?}", since.elapsed()));
        assert!(piece.is_err(), "{piece:?}");
    }

    async fn goes_on(&mut self) {
        let piece = tokio::time::timeout(Duration::from_millis(500), self.0.chunk()).await;
        assert!(piece.is_err(), "{piece:?}");
    }
}

async fn sql(stand: &Stand, text: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(text.to_owned()))
        .execute(&stand.database.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_token_and_its_session_end_with_the_key_whichever_it_was() {
    for (additional, change) in [
        (false, ROTATE),
        (false, r#"UPDATE "Project" SET "deletedAt" = now() WHERE id = 'project_shop'"#),
        (true, r#"UPDATE "Project" SET "deletedAt" = now() WHERE id = 'project_shop'"#),
        (
            true,
            "UPDATE api_keys SET revoked_at = now() AT TIME ZONE 'utc' WHERE id = 'apikey_admin'",
        ),
        (true, "DELETE FROM api_keys WHERE id = 'apikey_admin'"),
        (
            true,
            "UPDATE api_keys SET expires_at = now() AT TIME ZONE 'utc' WHERE id = 'apikey_admin'",
        ),
    ] {
        let stand = Stand::start(&[]).await;
        let seeded = stand.database.seeded;
        let (key, other) = match additional {
            true => (seeded.admin_key, stand.key()),
            false => (stand.key(), seeded.admin_key),
        };
        let (writer, other) = (Writer::new(&stand, key).await, Writer::new(&stand, other).await);
        let mut session = writer.session(&stand.gateway).await;
        let mut others = other.session(&stand.gateway).await;
        assert_eq!(writer.status(&stand.gateway).await, 200);
        session.goes_on().await;
        let since = Instant::now();
        sql(&stand, change).await;
        session.is_reset(since).await;
        assert_eq!(writer.status(&stand.gateway).await, 401, "{change}");
        if change.contains("Project") {
            others.is_reset(since).await;
            assert_eq!(other.status(&stand.gateway).await, 401, "{change}");
        } else {
            others.goes_on().await;
            assert_eq!(other.status(&stand.gateway).await, 200, "{change}");
        }
    }
}

#[tokio::test]
async fn a_key_that_may_do_less_than_before_writes_no_more() {
    let stand = Stand::start(&[]).await;
    let writer = Writer::new(&stand, stand.database.seeded.admin_key).await;
    let mut session = writer.session(&stand.gateway).await;
    let since = Instant::now();
    sql(&stand, "UPDATE api_keys SET scopes = '{read:runs}' WHERE id = 'apikey_admin'").await;
    session.is_reset(since).await;
    assert_eq!(writer.status(&stand.gateway).await, 403);
}

#[tokio::test]
async fn a_rotated_key_s_token_goes_on_in_its_grace_and_ends_with_it() {
    let stand = Stand::start(&[]).await;
    let writer = Writer::new(&stand, stand.key()).await;
    let mut session = writer.session(&stand.gateway).await;
    let grace = |of: &str| {
        format!(
            r#"BEGIN; {ROTATE}; INSERT INTO "RevokedApiKey"
               (id, "apiKey", "runtimeEnvironmentId", "expiresAt")
               VALUES ('rotated', '{}', 'env_prod', now() AT TIME ZONE 'utc' + interval '{of}'); COMMIT"#,
            stand.key()
        )
    };
    sql(&stand, &grace("1 day")).await;
    session.goes_on().await;
    assert_eq!(writer.status(&stand.gateway).await, 200);
    // Its end moves nearer.
    let nearer =
        "UPDATE \"RevokedApiKey\" SET \"expiresAt\" = now() AT TIME ZONE 'utc' + interval '2 s'";
    let since = Instant::now();
    sql(&stand, nearer).await;
    assert_eq!(writer.status(&stand.gateway).await, 200, "in its grace");
    session.is_reset(since).await;
    assert!(since.elapsed() > Duration::from_millis(1_900), "not before its end");
    assert_eq!(writer.status(&stand.gateway).await, 401);
}

#[tokio::test]
async fn a_branch_s_token_ends_with_the_branch_of_that_name() {
    let stand = Stand::start(&[]).await;
    let seeded = stand.database.seeded;
    let sql_run =
        r#"SELECT "friendlyId" FROM "TaskRun" WHERE "runtimeEnvironmentId" = 'env_branch'"#;
    let run: String = sqlx::query_scalar(sql_run).fetch_one(&stand.database.pool).await.unwrap();
    let path = format!("/realtime/v1/streams/{run}/self/ai");
    sql(&stand, r#"UPDATE "TaskRun" SET "realtimeStreamsVersion" = 'v2', "completedAt" = NULL"#)
        .await;
    let request = stand.gateway.request("PUT", &path).bearer_auth(seeded.preview.secret_key);
    let answer = request.header("x-trigger-branch", "checkout").send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    let path = format!("/s2/v1{}", records_of(&header("x-s2-stream-name")));
    let writer = Writer { token: header("x-s2-access-token"), path };
    let mut session = writer.session(&stand.gateway).await;
    assert_eq!(writer.status(&stand.gateway).await, 200);
    let since = Instant::now();
    sql(&stand, r#"UPDATE "RuntimeEnvironment" SET "archivedAt" = now() WHERE id = 'env_branch'"#)
        .await;
    session.is_reset(since).await;
    assert_eq!(writer.status(&stand.gateway).await, 401);
}

#[tokio::test]
async fn what_the_sdk_has_open_is_refused_after_its_key_ended_and_nothing_is_written() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let mut writer = stand.task("sdk-4.8.3", &run).await;
    order(&mut writer, json!({ "order": "open", "key": "ai" })).await;
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 0 }] })).await;
    let target = stand.gateway.target(stand.database.seeded.admin_key);
    let mut reader = crate::support::streams::task("sdk-4.8.3", &target, &run).await;
    reader.tell(&json!({ "order": "read", "key": "ai", "timeoutInSeconds": 60 })).await;
    expect_numbers(&mut reader, 0..1).await;
    // It rests on the same key, so that all sessions have ended when this one has.
    let witness = Writer::new(&stand, stand.key()).await;
    let mut session = witness.session(&stand.gateway).await;
    let since = Instant::now();
    sql(&stand, ROTATE).await;
    session.is_reset(since).await;
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 1 }] })).await;
    writer.tell(&json!({ "order": "close" })).await;
    let said = writer.next(SOON).await.expect("a word");
    assert_eq!(said["type"], "error", "{said}");
    let path = format!("/realtime/v1/streams/{run}/ai");
    let request = stand.gateway.request("GET", &path).bearer_auth("tr_prod_x");
    let text = request.header("timeout-seconds", "0").send().await.unwrap().text().await.unwrap();
    assert_eq!(records(&text).len(), 1);
}

#[tokio::test]
async fn a_reader_is_cut_off_when_its_key_ends() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    stand.append(&run, "ai", "x").await;
    let path = format!("/realtime/v1/streams/{run}/ai");
    let request = stand.gateway.request("GET", &path).bearer_auth(stand.key());
    let mut answer = request.send().await.unwrap();
    assert!(answer.chunk().await.expect("an event").is_some());
    sql(&stand, ROTATE).await;
    let end = async {
        loop {
            match answer.chunk().await {
                Ok(Some(_)) => {}
                end => return end,
            }
        }
    };
    let end = tokio::time::timeout(AT_ONCE, end).await.expect("an end");
    assert!(end.is_err(), "a clean end would be the stream's");
}

#[tokio::test]
async fn another_gateway_of_the_same_secret_judges_the_token_by_itself() {
    let database = fresh_database().await;
    let start = async |n: usize| {
        let data = scratch();
        let arguments = [
            format!("--data-dir={}", data.0.display()),
            format!("--secret={SECRET}"),
            format!("--slot=runwire_s2_{n}"),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let gateway = Gateway::start(&database.url, &arguments).await;
        (gateway, data)
    };
    let (first, _data) = start(1).await;
    let run = run(&database).await;
    let path = format!("/realtime/v1/streams/{run}/self/ai");
    let key = database.seeded.admin_key;
    let answer = first.request("PUT", &path).bearer_auth(key).send().await.unwrap();
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    let path = format!("/s2/v1{}", records_of(&header("x-s2-stream-name")));
    let writer = Writer { token: header("x-s2-access-token"), path };
    first.stop().await;
    let (second, _data) = start(2).await;
    assert_eq!(writer.status(&second).await, 200);
    let mut session = writer.session(&second).await;
    let since = Instant::now();
    let revoke = "UPDATE api_keys SET revoked_at = now() AT TIME ZONE 'utc'";
    sqlx::query(revoke).execute(&database.pool).await.unwrap();
    session.is_reset(since).await;
    second.stop().await;
    // One that never heard of the change.
    let (third, _data) = start(3).await;
    assert_eq!(writer.status(&third).await, 401);
    third.stop().await;
}

#[tokio::test]
async fn while_nobody_can_tell_a_writer_is_told_to_come_back_and_never_that_its_token_is_bad() {
    let stand = Stand::start(&[]).await;
    let writer = Writer::new(&stand, stand.key()).await;
    let mut session = writer.session(&stand.gateway).await;
    assert_eq!(writer.status(&stand.gateway).await, 200);
    // From another database of the server: nobody can lock the own one.
    let mut elsewhere = url::Url::parse(&stand.database.url).unwrap();
    elsewhere.set_path("/postgres");
    let mut own = sqlx::PgConnection::connect(elsewhere.as_str()).await.unwrap();
    let name = stand.database.url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let allow = |yes: bool| format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS {yes}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(allow(false))).execute(&mut own).await.unwrap();
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
    sqlx::query(cut).bind(&name).execute(&mut own).await.unwrap();
    let since = Instant::now();
    loop {
        match writer.status(&stand.gateway).await {
            // What was known a moment ago is believed, but not for long.
            200 => assert!(since.elapsed() < PATIENCE, "it is believed for too long"),
            503 => break,
            other => panic!("{other}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    session.goes_on().await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(allow(true))).execute(&mut own).await.unwrap();
    eventually("to be believed again", || async { writer.status(&stand.gateway).await == 200 })
        .await;
    session.goes_on().await;
    // And it is still told when the key ends.
    sql(&stand, ROTATE).await;
    let end = tokio::time::timeout(PATIENCE, session.0.chunk()).await.expect("an end");
    assert!(end.is_err(), "{end:?}");
}
