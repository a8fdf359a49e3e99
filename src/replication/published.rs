//! Whether the stream carries the tables that credentials are checked against.

use sqlx::PgPool;

use super::keys::KeyTable;

/// Tables of keys that the publication does not carry whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// What is to be run by the tables' owner.
    pub remedy: String,
}

/// Looks which tables of keys the publication lacks. Those that the database does not have are not
/// missed. `None`: it carries all, or it is not there yet.
pub async fn unpublished(
    pool: &PgPool,
    publication: &str,
) -> Result<Option<Unpublished>, sqlx::Error> {
    let names: Vec<&str> = KeyTable::ALL.iter().map(|table| table.name()).collect();
    // A list or a filter makes a table that is carried in parts. Before version 15 there are
    // neither; the row as JSON lets one statement ask all versions.
    let lacking: Vec<(String, bool)> = sqlx::query_as(
        r#"SELECT wanted.name, p.tablename IS NOT NULL
           FROM unnest($2::text[]) WITH ORDINALITY AS wanted (name, place)
           LEFT JOIN pg_publication_tables p
             ON p.pubname = $1 AND p.schemaname = 'public' AND p.tablename = wanted.name
           WHERE EXISTS (SELECT FROM pg_publication WHERE pubname = $1)
             AND to_regclass(format('public.%I', wanted.name)) IS NOT NULL
             AND (p.tablename IS NULL OR EXISTS (
               SELECT FROM pg_publication_rel r JOIN pg_publication o ON o.oid = r.prpubid
               WHERE o.pubname = $1 AND r.prrelid = to_regclass(format('public.%I', wanted.name))
                 AND (to_jsonb(r) ->> 'prattrs' IS NOT NULL OR to_jsonb(r) ->> 'prqual' IS NOT NULL)))
           ORDER BY wanted.place"#,
    )
    .bind(publication)
    .bind(&names)
    .fetch_all(pool)
    .await?;
    if lacking.is_empty() {
        return Ok(None);
    }
    let list = |parts: Vec<&String>| {
        let tables: Vec<String> =
            parts.into_iter().map(|name| format!(r#"public."{name}""#)).collect();
        tables.join(", ")
    };
    let narrowed = list(lacking.iter().filter(|(_, there)| *there).map(|(name, _)| name).collect());
    let all = list(lacking.iter().map(|(name, _)| name).collect());
    let add = format!("ALTER PUBLICATION {publication} ADD TABLE {all}");
    let remedy = if narrowed.is_empty() {
        add
    } else {
        format!("ALTER PUBLICATION {publication} DROP TABLE {narrowed}; {add}")
    };
    Ok(Some(Unpublished { remedy }))
}
