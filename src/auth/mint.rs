//! Making public access tokens for whoever holds a key (`runs-and-auth.md` 17).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value, json};

use super::credential::{Credential, MAX_BEARER_BYTES};
use super::door::Door;
use super::expiry::Expiry;
use super::grant::Caller;
use super::refusal::Refusal;
use super::scope::Scope;
use super::token::{AUDIENCE, ISSUER, Presented, classify};

/// What a new token is to say. Its environment is the caller's.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The scopes; without them the token grants nothing.
    pub scopes: Option<Vec<String>>,
    /// Whether it is good for one trigger only. Feeds do not care.
    pub one_time: bool,
    /// The claim `realtime`: columns to leave out, the shortest time between answers.
    pub realtime: Option<Map<String, Value>>,
}

/// Why no token was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The caller, or the look-up of the key that signs, was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The key does not reach as far as these scopes.
    #[error("Requested scopes exceed the API key's access")]
    Exceeds(Vec<String>),
    /// The end has come already.
    #[error("Expiration time must be in the future")]
    Past,
    /// The end is further off than [`LONGEST`].
    #[error("Expiration time cannot exceed 30 days")]
    TooFar,
    /// No server would read so long a token.
    #[error("The token would be too long")]
    TooLong,
    /// The signing key cannot sign.
    #[error("The token could not be signed")]
    Unsigned,
}

/// The furthest end of a token that [`Door::mint_within_bounds`] makes.
pub const LONGEST: Duration = Duration::from_secs(30 * 86_400);

impl Wish {
    /// Whether the caller's key reaches as far as these scopes.
    pub fn check(&self, caller: &Caller) -> Result<(), MintError> {
        let beyond = |scope: &&String| !caller.ability.covers(&Scope::parse(scope));
        let beyond: Vec<String> = self.scopes.iter().flatten().filter(beyond).cloned().collect();
        if beyond.is_empty() { Ok(()) } else { Err(MintError::Exceeds(beyond)) }
    }
}

impl Door {
    /// Lets in whoever presents a key: tokens cannot make tokens.
    pub async fn admit_key(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let presented = Credential::read(headers).ok();
        let bearer = presented.as_ref().map(Credential::bearer).unwrap_or_default();
        match classify(bearer) {
            Presented::PublicToken(_) => Err(Refusal::InvalidKey),
            Presented::AdditionalKey | Presented::RootKey => self.admit(headers).await,
        }
    }

    /// A token for the caller's environment that reaches no further than the caller and ends within
    /// 30 days from now.
    pub async fn mint_within_bounds(
        &self,
        caller: &Caller,
        wish: Wish,
        expiry: Expiry,
    ) -> Result<String, MintError> {
        let now = SystemTime::now();
        if expiry <= Expiry::after(Duration::ZERO, now) {
            return Err(MintError::Past);
        }
        if expiry > Expiry::after(LONGEST, now) {
            return Err(MintError::TooFar);
        }
        self.mint(caller, wish, expiry).await
    }

    /// The same whatever the expiry.
    pub async fn mint(
        &self,
        caller: &Caller,
        wish: Wish,
        expiry: Expiry,
    ) -> Result<String, MintError> {
        wish.check(caller)?;
        let key = self.0.signing_key(&caller.environment_id).await?;
        if key.reveal().is_empty() {
            return Err(MintError::Unsigned);
        }
        let issued = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |at| at.as_secs());
        let mut claims = json!({
            "sub": &*caller.environment_id, "pub": true, "iss": ISSUER, "aud": AUDIENCE,
            "iat": issued, "exp": expiry.claim(),
        });
        if let Some(scopes) = wish.scopes {
            claims["scopes"] = json!(scopes);
        }
        if wish.one_time {
            claims["otu"] = json!(true);
        }
        if let Some(realtime) = wish.realtime {
            claims["realtime"] = Value::Object(realtime);
        }
        // Upstream's tokens name the algorithm and nothing else.
        let header = Header { typ: None, ..Header::new(Algorithm::HS256) };
        let secret = EncodingKey::from_secret(key.reveal().as_bytes());
        let token = jsonwebtoken::encode(&header, &claims, &secret);
        let token = token.map_err(|_| MintError::Unsigned)?;
        if token.len() > MAX_BEARER_BYTES {
            return Err(MintError::TooLong);
        }
        Ok(token)
    }
}
