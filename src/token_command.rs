//! `runwire token`: a public access token from a key, for first steps and scripts.

use std::time::SystemTime;

use axum::http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use clap::Args;
use serde_json::{Map, json};
use sqlx::postgres::PgPoolOptions;

use crate::auth::{Door, Expiry, MintError, NoSpan, Refusal, Settings, Wish};
use crate::config::{DatabaseArgs, SettingError};

/// What `runwire token` can be told.
#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    token: Token,
}

/// The token itself.
#[derive(Args, Clone)]
#[command(next_help_heading = "Token")]
struct Token {
    /// A root or additional key of the environment
    #[arg(long, env = "TRIGGER_SECRET_KEY", value_name = "KEY", hide_env_values = true)]
    key: String,
    /// The branch, where the key's environment has branches
    #[arg(long, env = "TRIGGER_PREVIEW_BRANCH", value_name = "NAME")]
    branch: Option<String>,
    /// What the token opens, such as read:runs, read:runs:run_abc or read:tags:user:1. May be repeated
    #[arg(long = "scope", required = true, value_name = "SCOPE")]
    scopes: Vec<String>,
    /// How long it is good for, up to 30 days: 15m, 12 hours, 7d
    #[arg(long, default_value = "1h", value_name = "SPAN")]
    expires_in: String,
    /// Columns that its feeds leave out, such as payload,output
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    skip_columns: Vec<String>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The database's address is missing or wrong.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The key or the branch cannot be sent as a header, and so opens nothing.
    #[error("{0}")]
    Refused(Refusal),
    /// The database cannot be asked.
    #[error("the database does not answer")]
    Database,
    /// `--expires-in` names no span.
    #[error("--expires-in: {0}; try 15m, 12 hours or 7d")]
    Expiry(#[from] NoSpan),
    /// The key does not reach as far as these scopes.
    #[error("the key does not grant {0}")]
    Exceeds(String),
    /// The token would be refused.
    #[error("{0}")]
    Mint(MintError),
}

impl From<Refusal> for TokenError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unavailable => TokenError::Database,
            other => TokenError::Refused(other),
        }
    }
}

impl From<MintError> for TokenError {
    fn from(error: MintError) -> Self {
        match error {
            MintError::Refused(refusal) => refusal.into(),
            MintError::Exceeds(scopes) => TokenError::Exceeds(scopes.join(", ")),
            other => TokenError::Mint(other),
        }
    }
}

/// Makes the token, by the rules of `/api/v1/auth/public-tokens` (`runs-and-auth.md` 17.3).
pub async fn mint(args: TokenArgs) -> Result<String, TokenError> {
    let options = args.database.sql_url()?.sql_options();
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    let door = Door::new(pool, Settings::default());
    let token = args.token;
    let expiry = Expiry::parse(&token.expires_in, SystemTime::now())?;

    let mut headers = HeaderMap::new();
    let header = |text: &str| HeaderValue::from_str(text).map_err(|_| Refusal::InvalidKey);
    headers.insert(AUTHORIZATION, header(&token.key)?);
    if let Some(branch) = &token.branch {
        headers.insert("x-trigger-branch", header(branch)?);
    }
    let caller = door.admit_key(&headers).await?;

    let columns = json!(token.skip_columns);
    let realtime = Map::from_iter([("skipColumns".to_owned(), columns)]);
    let realtime = (!token.skip_columns.is_empty()).then_some(realtime);
    let wish = Wish { scopes: Some(token.scopes), realtime, ..Wish::default() };
    Ok(door.mint_within_bounds(&caller, wish, expiry).await?)
}
