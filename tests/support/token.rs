//! Public access tokens as the SDK signs them.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use runwire::dev::seed::Environment;
use serde_json::{Value, json};

/// A token of the environment with these scopes, good for a quarter of an hour.
pub fn public(environment: Environment, scopes: &[&str]) -> String {
    let mut claims = claims(environment.id);
    claims["scopes"] = json!(scopes);
    sign(&claims, environment.secret_key)
}

/// The claims of a good token, but for its scopes.
pub fn claims(environment_id: &str) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    json!({
        "sub": environment_id, "pub": true, "iat": now, "exp": now + 900,
        "iss": "https://id.trigger.dev", "aud": "https://api.trigger.dev",
    })
}

/// The token of these claims.
pub fn sign(claims: &Value, secret: &str) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(Algorithm::HS256), claims, &key).expect("sign a token")
}
