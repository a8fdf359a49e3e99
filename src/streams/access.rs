//! Access tokens for S2's routes (`streams-and-sessions.md`, 4.3): signed here, and scoped to a basin,
//! to one run's streams, to operations, and to a time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde_json::{Value, json};

use super::secret::Secret;

const AUDIENCE: &str = "runwire:s2";

/// What a token may allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Appending records, of every kind.
    Append,
    /// Creating a stream.
    CreateStream,
    /// Reading records and the tail.
    Read,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Append => "append",
            Operation::CreateStream => "create-stream",
            Operation::Read => "read",
        }
    }
}

/// What a token opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The environment that counts for what is done with it.
    pub environment: String,
    /// The basin.
    pub basin: String,
    /// What the names of its streams begin with; it ends with a slash, so that `…/run_1/` is not the
    /// beginning of `…/run_10/x`.
    pub prefix: String,
    /// What may be done.
    pub operations: Vec<Operation>,
    /// When it ends.
    pub expires_at: SystemTime,
}

impl Grant {
    /// Whether this may be done to the stream of this (decoded) name.
    pub fn allows(&self, operation: Operation, stream: &str) -> bool {
        self.prefix.ends_with('/')
            && stream.len() > self.prefix.len()
            && stream.starts_with(&self.prefix)
            && self.operations.contains(&operation)
    }
}

/// Issues tokens and reads them again.
#[derive(Clone, Debug)]
pub struct Issuer {
    signs: Secret,
    /// Former secrets, whose tokens are still good.
    former: Vec<Secret>,
    /// How long tokens live.
    pub lifetime: Duration,
}

impl Issuer {
    /// With these secrets.
    pub fn new(signs: Secret, former: Vec<Secret>, lifetime: Duration) -> Issuer {
        Issuer { signs, former, lifetime }
    }

    /// A token for this; `None` if it cannot be signed.
    pub fn issue(&self, grant: &Grant) -> Option<String> {
        let expires_at = grant.expires_at.duration_since(UNIX_EPOCH).ok()?.as_secs();
        let operations: Vec<_> = grant.operations.iter().map(|each| each.name()).collect();
        let claims = json!({
            "aud": AUDIENCE, "sub": grant.environment, "basin": grant.basin,
            "prefix": grant.prefix, "ops": operations, "exp": expires_at,
        });
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(&self.signs.0))
            .ok()
    }

    /// What a token opens; `None` if it is not ours or has ended.
    pub fn read(&self, token: &str) -> Option<Grant> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        validation.leeway = 0;
        let claims: Value =
            std::iter::once(&self.signs).chain(&self.former).find_map(|secret| {
                let key = DecodingKey::from_secret(&secret.0);
                decode(token, &key, &validation).ok().map(|token| token.claims)
            })?;
        let text = |name: &str| claims[name].as_str().map(str::to_owned);
        let all = [Operation::Append, Operation::CreateStream, Operation::Read];
        let named = claims["ops"].as_array()?;
        let is_named = |each: &Operation| named.iter().any(|name| name == each.name());
        Some(Grant {
            environment: text("sub")?,
            basin: text("basin")?,
            prefix: text("prefix")?,
            operations: all.into_iter().filter(is_named).collect(),
            expires_at: UNIX_EPOCH + Duration::from_secs(claims["exp"].as_u64()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(secret: &str, former: &[&str]) -> Issuer {
        let former = former.iter().map(|text| Secret::of(text)).collect();
        Issuer::new(Secret::of(secret), former, Duration::from_secs(60))
    }

    fn grant(expires_in: i64) -> Grant {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        Grant {
            environment: "env_1".to_owned(),
            basin: "basin-one".to_owned(),
            prefix: "org/o/env/prod/env1/runs/run_1/".to_owned(),
            operations: vec![Operation::Append],
            expires_at: UNIX_EPOCH + Duration::from_secs((now + expires_in) as u64),
        }
    }

    #[test]
    fn a_token_says_what_it_was_issued_for_until_it_ends() {
        let issuer = issuer("a", &[]);
        let token = issuer.issue(&grant(60)).unwrap();
        assert_eq!(issuer.read(&token), Some(grant(60)));
        assert_eq!(issuer.read(&issuer.issue(&grant(-1)).unwrap()), None);
    }

    #[test]
    fn only_our_own_secrets_sign() {
        let token = issuer("a", &[]).issue(&grant(60)).unwrap();
        assert!(issuer("b", &["x", "a"]).read(&token).is_some());
        assert!(issuer("b", &["x"]).read(&token).is_none());
        let none = concat!("eyJhbGciOiJub25lIn0", ".", "eyJhdWQiOiJydW53aXJlOnMyIn0", ".");
        for garbage in ["", "a.b.c", none, &token[..token.len() - 1]] {
            assert!(issuer("a", &[]).read(garbage).is_none(), "{garbage}");
        }
    }

    #[test]
    fn a_token_of_another_audience_is_none() {
        let claims = json!({ "aud": "x", "sub": "e", "basin": "b", "prefix": "p/", "ops": ["append"],
            "exp": 99_999_999_999_u64 });
        let key = EncodingKey::from_secret(&Secret::of("a").0);
        let token = encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
        assert!(issuer("a", &[]).read(&token).is_none());
    }

    #[test]
    fn a_prefix_ends_with_a_slash_or_opens_nothing() {
        let allows = |prefix: &str, stream: &str| {
            let grant = Grant { prefix: prefix.to_owned(), ..grant(60) };
            grant.allows(Operation::Append, stream)
        };
        assert!(allows("env/a/env1/runs/run_1/", "env/a/env1/runs/run_1/key"));
        assert!(!allows("env/a/env1/runs/run_1/", "env/a/env1/runs/run_10/key"));
        assert!(!allows("env/a/env1/", "env/a/env10/runs/run_1/key"));
        assert!(!allows("env/a/env1", "env/a/env10/runs/run_1/key"));
        assert!(!allows("env/a/env1/", "env/a/env1/"));
        assert!(!allows("", "x"));
        assert!(!grant(60).allows(Operation::Read, "org/o/env/prod/env1/runs/run_1/key"));
    }
}
