//! Schema and seed of throw-away databases.

use runwire::runs::columns::{Column, Kind};

use crate::support::cluster::fresh_database;

#[tokio::test]
async fn a_seeded_database_has_every_column_that_clients_receive() {
    let database = fresh_database().await;
    let types: Vec<(String, String)> = sqlx::query_as(
        r#"SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
           WHERE attrelid = '"TaskRun"'::regclass AND attnum > 0 AND NOT attisdropped"#,
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    for column in Column::ALL {
        let (_, found) = types.iter().find(|(name, _)| name == column.name()).unwrap();
        let wanted = match column.kind() {
            Kind::Text if column == Column::Status => "\"TaskRunStatus\"",
            Kind::Text => "text",
            Kind::Timestamp => "timestamp(3) without time zone",
            Kind::Int4 => "integer",
            Kind::Float8 => "double precision",
            Kind::Bool => "boolean",
            Kind::Jsonb => "jsonb",
            Kind::TextArray => "text[]",
        };
        assert_eq!(found, wanted, "{}", column.name());
    }
}

#[tokio::test]
async fn the_schema_keeps_its_traps_for_positional_code() {
    let database = fresh_database().await;
    let (dropped, identity, publications): (i64, String, i64) = sqlx::query_as(
        r#"SELECT (SELECT count(*) FROM pg_attribute WHERE attrelid = '"TaskRun"'::regclass AND attisdropped),
                  (SELECT relreplident::text FROM pg_class WHERE oid = '"TaskRun"'::regclass),
                  (SELECT count(*) FROM pg_publication)"#,
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!((dropped, identity.as_str(), publications), (1, "d", 0));
    let live: Vec<String> = sqlx::query_scalar(
        r#"SELECT attname::text FROM pg_attribute WHERE attrelid = '"TaskRun"'::regclass
           AND attnum > 0 AND NOT attisdropped ORDER BY attnum"#,
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let read: Vec<_> = live.iter().filter_map(|name| Column::named(name)).collect();
    assert_ne!(read, Column::ALL);
}

#[tokio::test]
async fn the_seed_holds_what_it_names() {
    let database = fresh_database().await;
    let seeded = database.seeded;
    for environment in [seeded.production, seeded.development, seeded.preview, seeded.branch] {
        let found: (String, String, String, String) = sqlx::query_as(
            r#"SELECT "apiKey", type::text, "projectId", "organizationId"
               FROM "RuntimeEnvironment" WHERE id = $1"#,
        )
        .bind(environment.id)
        .fetch_one(&database.pool)
        .await
        .unwrap();
        assert_eq!(found.0, environment.secret_key);
        assert_eq!(found.1, environment.kind);
        assert_eq!(
            (found.2, found.3),
            (environment.project.into(), environment.organization.into())
        );
    }
    let runs = [seeded.run, seeded.completed_run, seeded.failed_run, seeded.large_run];
    let found: i64 = sqlx::query_scalar(
        r#"SELECT count(*) FROM "TaskRun" WHERE "friendlyId" = ANY($1) AND "runtimeEnvironmentId" = $2"#,
    )
    .bind(&runs[..])
    .bind(seeded.production.id)
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(found, 4);
    let keys = [seeded.admin_key, seeded.restricted_key, seeded.revoked_key, seeded.expired_key];
    let found: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM api_keys, unnest($1::text[]) key
         WHERE key_hash = encode(sha256(key::bytea), 'hex')",
    )
    .bind(&keys[..])
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(found, 4);
}
