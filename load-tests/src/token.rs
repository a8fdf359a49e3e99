//! Public access tokens as the SDK signs them locally (`runs-and-auth.md`, 12.4 and 17.1).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

use crate::runs;

const LIFE: Duration = Duration::from_secs(3_600);

/// A token that grants one scope in the environment of the runs, for an hour.
pub fn public_token(scope: &str) -> Result<String> {
    sign(scope, 0, runs::SECRET_KEY)
}

/// The same, and no two of them are alike.
pub fn new_token(scope: &str) -> Result<String> {
    sign(scope, next(), runs::SECRET_KEY)
}

/// A token that somebody signed who does not hold the key; no two are alike.
pub fn forged_token() -> Result<String> {
    sign("admin", next(), "tr_prod_forgedforgedforgedforged")
}

/// What has the looks of a key and is none; no two are alike.
pub fn garbage_token() -> String {
    format!("tr_prod_garbage{:017}", next())
}

fn next() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn sign(scope: &str, number: u64, secret: &str) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let claims = json!({
        "sub": runs::ENVIRONMENT,
        "pub": true,
        "jti": number,
        "scopes": [scope],
        "iss": "https://id.trigger.dev",
        "aud": "https://api.trigger.dev",
        "iat": now.as_secs(),
        "exp": (now + LIFE).as_secs(),
    });
    let key = EncodingKey::from_secret(secret.as_bytes());
    Ok(encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}
