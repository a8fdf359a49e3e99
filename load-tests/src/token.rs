//! Public access tokens as the SDK signs them locally (`runs-and-auth.md`, 12.4 and 17.1).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

use crate::runs;

const LIFE: Duration = Duration::from_secs(3_600);

/// A token that grants one scope in the environment of the runs, for an hour.
pub fn public_token(scope: &str) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let claims = json!({
        "sub": runs::ENVIRONMENT,
        "pub": true,
        "scopes": [scope],
        "iss": "https://id.trigger.dev",
        "aud": "https://api.trigger.dev",
        "iat": now.as_secs(),
        "exp": (now + LIFE).as_secs(),
    });
    let key = EncodingKey::from_secret(runs::SECRET_KEY.as_bytes());
    Ok(encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}
