//! Public access tokens: telling them from keys, and verifying them (`runs-and-auth.md` 12.1, 12.4).

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use super::scope::Ability;
use crate::replication::keys::SigningKey;

pub(super) const ISSUER: &str = "https://id.trigger.dev";
pub(super) const AUDIENCE: &str = "https://api.trigger.dev";

/// The end of the year 9999: an expiry beyond it is taken for this, lest the clock's type overflow.
const LATEST_EXPIRY: f64 = 253_402_300_799.0;

/// What a bearer is by its looks. Nothing has been verified yet.
pub enum Presented<'a> {
    /// Three parts, and the middle one says `"pub": true`.
    PublicToken(PublicToken<'a>),
    /// `tr_<dev|stg|prod|preview>_sk_` and 24 letters or digits.
    AdditionalKey,
    /// Anything else; only a look-up by the whole text can tell.
    RootKey,
}

/// Sorts a bearer into the three paths of `runs-and-auth.md` 12.1.
pub fn classify(bearer: &str) -> Presented<'_> {
    match PublicToken::parse(bearer) {
        Some(token) => Presented::PublicToken(token),
        None if is_additional_key(bearer) => Presented::AdditionalKey,
        None => Presented::RootKey,
    }
}

fn is_additional_key(bearer: &str) -> bool {
    let Some((environment, secret)) =
        bearer.strip_prefix("tr_").and_then(|rest| rest.split_once("_sk_"))
    else {
        return false;
    };
    matches!(environment, "dev" | "stg" | "prod" | "preview")
        && secret.len() == 24
        && secret.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Why a public access token is not accepted. Clients are told none of this apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The header is not a plain one of an accepted algorithm.
    #[error("the algorithm is not accepted")]
    Algorithm,
    /// No key that was tried made this signature.
    #[error("the signature does not match")]
    Signature,
    /// `iss` is not Trigger.dev's.
    #[error("the issuer is foreign")]
    Issuer,
    /// `aud` neither is nor contains Trigger.dev's API.
    #[error("the audience is foreign")]
    Audience,
    /// `exp` has passed, is no number, or is missing where it must not be.
    #[error("expired, or without expiry")]
    Expiry,
    /// `nbf` lies ahead or is no number.
    #[error("not valid yet")]
    NotBefore,
    /// `iat` is no number.
    #[error("no time of issue")]
    IssuedAt,
}

/// Which tokens are accepted. Trigger.dev's own servers are lax about both: such a token is good for
/// ever, and the algorithms are as good as HS256.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenRules {
    /// Whether a token without `exp`, and HS384 and HS512, are accepted.
    pub lax: bool,
}

impl TokenRules {
    fn algorithm(self, name: &str) -> Option<Algorithm> {
        match name {
            "HS256" => Some(Algorithm::HS256),
            "HS384" if self.lax => Some(Algorithm::HS384),
            "HS512" if self.lax => Some(Algorithm::HS512),
            _ => None,
        }
    }
}

/// A public access token that has been taken apart, with claims that nobody vouches for yet.
pub struct PublicToken<'a> {
    header: &'a str,
    signed: &'a str,
    signature: &'a str,
    claims: Value,
}

/// What a verified token says.
#[derive(Clone, Debug)]
pub struct Verified {
    /// From `scopes`; a claim that is no array grants nothing.
    pub ability: Ability,
    /// When the token ends, if it does.
    pub expires_at: Option<SystemTime>,
    /// `realtime.skipColumns` if that is an array; its members that are not text are dropped.
    pub skip_columns: Option<Arc<[String]>>,
    /// `realtime.throttleMs` if that is a number from 0 on.
    pub throttle: Option<Duration>,
    /// Which of the keys had signed it.
    pub key_index: usize,
}

impl<'a> PublicToken<'a> {
    fn parse(bearer: &'a str) -> Option<Self> {
        let (signed, signature) = bearer.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        if payload.contains('.') {
            return None;
        }
        let claims = json(payload)?;
        (claims.get("pub") == Some(&Value::Bool(true))).then_some(Self {
            header,
            signed,
            signature,
            claims,
        })
    }

    /// The environment that the token claims to be for, if the claim is a text.
    pub fn subject(&self) -> Option<&str> {
        self.claims.get("sub")?.as_str()
    }

    /// Checks the signature against `keys` in turn, and only then the claims as of `now`, with no
    /// tolerance for clocks that differ.
    pub fn verify<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k SigningKey>,
        now: SystemTime,
        rules: TokenRules,
    ) -> Result<Verified, TokenError> {
        let algorithm = self.algorithm(rules)?;
        let key_index = keys
            .into_iter()
            .position(|key| self.signed_by(key, algorithm))
            .ok_or(TokenError::Signature)?;
        let expires_at = self.check_claims(now, rules)?;
        let scopes = self.claims.get("scopes").and_then(Value::as_array).into_iter().flatten();
        Ok(Verified {
            ability: Ability::from_scopes(scopes.filter_map(Value::as_str)),
            expires_at,
            skip_columns: self.skip_columns(),
            throttle: self.throttle(),
            key_index,
        })
    }

    fn algorithm(&self, rules: TokenRules) -> Result<Algorithm, TokenError> {
        let header = json(self.header).ok_or(TokenError::Algorithm)?;
        // `crit` names extensions that must be understood; there are none that we do.
        let name = header.get("alg").filter(|_| header.get("crit").is_none());
        name.and_then(Value::as_str)
            .and_then(|name| rules.algorithm(name))
            .ok_or(TokenError::Algorithm)
    }

    fn signed_by(&self, key: &SigningKey, algorithm: Algorithm) -> bool {
        // An empty secret would let anybody sign.
        !key.reveal().is_empty()
            && jsonwebtoken::crypto::verify(
                self.signature,
                self.signed.as_bytes(),
                &DecodingKey::from_secret(key.reveal().as_bytes()),
                algorithm,
            )
            .unwrap_or(false)
    }

    fn check_claims(
        &self,
        now: SystemTime,
        rules: TokenRules,
    ) -> Result<Option<SystemTime>, TokenError> {
        let claim = |name| self.claims.get(name);
        if claim("iss").and_then(Value::as_str) != Some(ISSUER) {
            return Err(TokenError::Issuer);
        }
        let for_us = match claim("aud") {
            Some(Value::String(one)) => one == AUDIENCE,
            Some(Value::Array(several)) => several.iter().any(|one| one == AUDIENCE),
            _ => false,
        };
        if !for_us {
            return Err(TokenError::Audience);
        }
        if claim("iat").is_some_and(|at| !at.is_number()) {
            return Err(TokenError::IssuedAt);
        }
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) as f64;
        if claim("nbf").is_some_and(|from| from.as_f64().is_none_or(|from| from > second)) {
            return Err(TokenError::NotBefore);
        }
        let Some(end) = claim("exp") else {
            return if rules.lax { Ok(None) } else { Err(TokenError::Expiry) };
        };
        match end.as_f64() {
            Some(end) if end > second => {
                // Whole seconds are compared, so a fraction ends with its second.
                let end = Duration::from_secs(end.ceil().min(LATEST_EXPIRY) as u64);
                Ok(Some(UNIX_EPOCH + end))
            }
            _ => Err(TokenError::Expiry),
        }
    }

    fn throttle(&self) -> Option<Duration> {
        let millis = self.claims.get("realtime")?.get("throttleMs")?.as_f64()?;
        (millis >= 0.0).then(|| Duration::from_millis(millis as u64))
    }

    fn skip_columns(&self) -> Option<Arc<[String]>> {
        let columns = self.claims.get("realtime")?.get("skipColumns")?.as_array()?;
        Some(columns.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }
}

impl fmt::Debug for PublicToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicToken").finish_non_exhaustive()
    }
}

fn json(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests;
