//! The tenant that throw-away databases begin with (`seed.sql`), by name.

use sqlx::PgPool;

/// A runtime environment and the key that opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `RuntimeEnvironment.id`.
    pub id: &'static str,
    /// Its root key, which also signs its public tokens. A branch's own opens nothing: callers use
    /// the parent's.
    pub secret_key: &'static str,
    /// `RuntimeEnvironment.type`.
    pub kind: &'static str,
    /// `Project.id`.
    pub project: &'static str,
    /// `Organization.id`.
    pub organization: &'static str,
}

/// What the seed holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seeded {
    /// Where nearly all seeded runs are.
    pub production: Environment,
    /// The same project's development environment, with one run.
    pub development: Environment,
    /// The same project's preview environment; has branches, no runs.
    pub preview: Environment,
    /// The branch `checkout` of [`Seeded::preview`], with one run.
    pub branch: Environment,
    /// Another organization's production environment, with one run.
    pub rival: Environment,
    /// An environment of a deleted project, whose key must not work.
    pub closed: Environment,
    /// Production's former root key, still in its grace.
    pub rotated_key: &'static str,
    /// Production's former root key, out of its grace.
    pub expired_rotated_key: &'static str,
    /// An additional key of production's, scope `admin`.
    pub admin_key: &'static str,
    /// An additional key of production's, scope `read:runs`.
    pub restricted_key: &'static str,
    /// An additional key of production's, revoked.
    pub revoked_key: &'static str,
    /// An additional key of production's, expired.
    pub expired_key: &'static str,
    /// A run of production's that is `EXECUTING`, with metadata and tag `user:1`.
    pub run: &'static str,
    /// A completed run of production's, with output and awkward tags.
    pub completed_run: &'static str,
    /// A failed run of production's, with an error.
    pub failed_run: &'static str,
    /// An executing run whose payload and output are stored out of line.
    pub large_run: &'static str,
    /// A run of [`Seeded::rival`]'s.
    pub rival_run: &'static str,
    /// A batch of production's with two runs.
    pub batch: &'static str,
}

const fn environment(
    id: &'static str,
    secret_key: &'static str,
    kind: &'static str,
    project: &'static str,
    organization: &'static str,
) -> Environment {
    Environment { id, secret_key, kind, project, organization }
}

/// The seed, as loaded by [`load`].
pub const SEEDED: Seeded = {
    let (shop, acme) = ("project_shop", "org_acme");
    Seeded {
        production: environment(
            "env_prod",
            "tr_prod_runwireProduction0000",
            "PRODUCTION",
            shop,
            acme,
        ),
        development: environment(
            "env_dev",
            "tr_dev_runwireDevelopment0000",
            "DEVELOPMENT",
            shop,
            acme,
        ),
        preview: environment("env_preview", "tr_preview_runwirePreview0000", "PREVIEW", shop, acme),
        branch: environment("env_branch", "tr_preview_runwireBranch00000", "PREVIEW", shop, acme),
        rival: environment(
            "env_rival",
            "tr_prod_rivalProduction000000",
            "PRODUCTION",
            "project_rival",
            "org_rival",
        ),
        closed: environment(
            "env_closed",
            "tr_prod_closedProject00000000",
            "PRODUCTION",
            "project_closed",
            acme,
        ),
        rotated_key: "tr_prod_runwireRotatedAway000",
        expired_rotated_key: "tr_prod_runwireRotatedLongAgo0",
        admin_key: "tr_prod_sk_runwireAdminKey000000001",
        restricted_key: "tr_prod_sk_runwireReadRuns000000001",
        revoked_key: "tr_prod_sk_runwireRevoked0000000001",
        expired_key: "tr_prod_sk_runwireExpired0000000001",
        run: "run_cseedexecuting00000000001",
        completed_run: "run_cseedcompleted00000000001",
        failed_run: "run_cseedfailed00000000000001",
        large_run: "run_cseedlarge000000000000001",
        rival_run: "run_cseedrival000000000000001",
        batch: "batch_cseedbatch000000000000001",
    }
};

/// Loads the seed unless it is there.
pub async fn load(pool: &PgPool) -> Result<Seeded, sqlx::Error> {
    let loaded: bool =
        sqlx::query_scalar(r#"SELECT EXISTS (SELECT FROM "Organization" WHERE id = 'org_acme')"#)
            .fetch_one(pool)
            .await?;
    if !loaded {
        // On a connection of its own, since it changes the session.
        let mut connection = pool.acquire().await?.detach();
        sqlx::raw_sql(include_str!("seed.sql")).execute(&mut connection).await?;
        sqlx::Connection::close(connection).await?;
    }
    Ok(SEEDED)
}
