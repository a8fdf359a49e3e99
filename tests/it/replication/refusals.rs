//! What `runwire serve` refuses to start with: one line that names the remedy, and exit code 2.

use runwire::dev::{Options, Postgres};
use sqlx::AssertSqlSafe;

use crate::support::cluster::{Database, database_in, fresh_database};
use crate::support::program::run;

const ADDRESSES: [&str; 3] = ["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];

/// The one line with which `serve` refuses these arguments.
async fn refusal(arguments: &[&str]) -> String {
    let ended = run(&[&ADDRESSES[..], arguments].concat()).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    ended.complaint().to_owned()
}

async fn execute(database: &Database, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&database.pool).await.unwrap();
}

#[tokio::test]
async fn a_setting_that_is_missing_or_wrong_is_named() {
    let good = "postgresql://postgres@127.0.0.1:1/d";
    for (arguments, said) in [
        (&[][..], "DATABASE_URL: is not set"),
        (&["--database-url=nonsense"], "DATABASE_URL: is not a URL"),
        (&["--database-url=mysql://h/d"], "DATABASE_URL: must begin with postgresql://"),
        (&["--database-url=postgres://h"], "DATABASE_URL: names no database"),
        (
            &["--database-url=postgres://u:hidden@h/d?sslmode=on"],
            "DATABASE_URL: has the unknown sslmode \"on\"",
        ),
        (&["--database-url", good, "--direct-url=x"], "DIRECT_URL: is not a URL"),
        (&["--database-url", good, "--replication-url=x"], "RUNWIRE_REPLICATION_URL: is not a URL"),
        (&["--database-url", good, "--slot=Not a name"], "RUNWIRE_SLOT: \"Not a name\" must be"),
        (&["--database-url", good, "--slot=2nd"], "RUNWIRE_SLOT: \"2nd\" must be"),
        (&["--database-url", good, "--publication="], "RUNWIRE_PUBLICATION: \"\" must be"),
    ] {
        let complaint = refusal(arguments).await;
        assert!(complaint.starts_with(said), "{complaint}");
        assert!(!complaint.contains("hidden"), "{complaint}");
    }
}

#[tokio::test]
async fn a_publication_that_would_lose_changes_or_break_the_applications_writes_is_refused() {
    let database = fresh_database().await;
    for (publication, remedy) in [
        (
            r#"FOR TABLE "TaskRun" (id, status, "friendlyId")"#,
            r#"ALTER PUBLICATION runwire SET TABLE public."TaskRun""#,
        ),
        (
            r#"FOR TABLE "TaskRun" WHERE (id <> 'x')"#,
            r#"ALTER PUBLICATION runwire SET TABLE public."TaskRun""#,
        ),
        (r#"FOR TABLE "Project""#, r#"ALTER PUBLICATION runwire ADD TABLE public."TaskRun""#),
        ("", r#"ALTER PUBLICATION runwire ADD TABLE public."TaskRun""#),
        (
            r#"FOR TABLE "TaskRun" WITH (publish = 'insert, update')"#,
            "ALTER PUBLICATION runwire SET (publish = 'insert, update, delete, truncate')",
        ),
    ] {
        execute(&database, &format!("CREATE PUBLICATION runwire {publication}")).await;
        let complaint = refusal(&["--database-url", &database.url]).await;
        let Some((_, statement)) = complaint.split_once(": ") else { panic!("{complaint}") };
        assert_eq!(statement, remedy, "{publication}");
        // The remedy helps: what is refused next, if anything, is something else.
        execute(&database, statement).await;
        let again = run(&["slot", "drop", "--database-url", &database.url]).await;
        assert_eq!(again.code, Some(0), "{}", again.stderr);
    }
}

#[tokio::test]
async fn the_remedies_of_a_refused_publication_make_it_fit() {
    let database = fresh_database().await;
    execute(
        &database,
        r#"CREATE PUBLICATION runwire FOR TABLE "Project" WITH (publish = 'insert')"#,
    )
    .await;
    for _ in 0..2 {
        let complaint = refusal(&["--database-url", &database.url]).await;
        execute(&database, complaint.split_once(": ").unwrap().1).await;
    }
    let settings = crate::support::stream::settings(&database.url, "remedies");
    assert!(runwire::replication::Source::new(settings).await.is_ok());
}

#[tokio::test]
async fn a_database_that_cannot_be_streamed_from_is_refused() {
    let database = fresh_database().await;
    execute(&database, r#"ALTER TABLE "TaskRun" REPLICA IDENTITY NOTHING"#).await;
    let complaint = refusal(&["--database-url", &database.url]).await;
    assert!(complaint.contains(r#"ALTER TABLE public."TaskRun" REPLICA IDENTITY DEFAULT"#));
    execute(&database, r#"ALTER TABLE "TaskRun" REPLICA IDENTITY DEFAULT"#).await;
    execute(&database, r#"ALTER TABLE "TaskRun" RENAME ttl TO lifetime"#).await;
    let complaint = refusal(&["--database-url", &database.url]).await;
    assert!(complaint.ends_with("lacks the columns ttl"), "{complaint}");
    execute(&database, r#"ALTER TABLE "TaskRun" RENAME TO "Renamed""#).await;
    let complaint = refusal(&["--database-url", &database.url]).await;
    assert!(complaint.contains(r#"no table public."TaskRun""#), "{complaint}");
}

#[tokio::test]
async fn a_server_without_logical_decoding_is_refused_with_the_setting_to_change() {
    let settings = vec![("wal_level".to_owned(), "replica".to_owned())];
    let postgres = Postgres::start(Options { settings, ..Options::default() }).await.unwrap();
    let database = database_in(&postgres).await;
    let complaint = refusal(&["--database-url", &database.url]).await;
    assert!(complaint.contains("ALTER SYSTEM SET wal_level = 'logical'"), "{complaint}");
    database.pool.close().await;
}
