//! Access tokens for S2's routes (`streams-and-sessions.md`, 4.3): signed here, bound to whose word they
//! were issued on, and scoped to a basin, to a prefix of names, to operations, and to a time.

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
    const ALL: [Operation; 3] = [Operation::Append, Operation::CreateStream, Operation::Read];

    fn name(self) -> &'static str {
        match self {
            Operation::Append => "append",
            Operation::CreateStream => "create-stream",
            Operation::Read => "read",
        }
    }
}

/// On whose word a token was issued. It opens nothing any more once that is worth nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// A key's, as `auth` judges it again without the secret.
    Key(String),
    /// The service token's that has this fingerprint.
    Service(String),
}

/// What a token opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// On whose word.
    pub authority: Authority,
    /// The environment that counts for what is done with it, and that a key has to open.
    pub environment: String,
    /// The basin.
    pub basin: String,
    /// What the names of its streams begin with; it ends with a slash, so that `…/run_1/` is not the
    /// beginning of `…/run_10/x`.
    pub prefix: String,
    /// What the names that its holder says are put behind.
    pub auto_prefix: Option<String>,
    /// What may be done.
    pub operations: Vec<Operation>,
    /// When it ends.
    pub expires_at: SystemTime,
}

impl Grant {
    /// The name of the stream that its holder calls so.
    pub fn stream(&self, named: String) -> String {
        match &self.auto_prefix {
            Some(prefix) => format!("{prefix}{named}"),
            None => named,
        }
    }

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
        let (key, service) = match &grant.authority {
            Authority::Key(basis) => (Some(basis), None),
            Authority::Service(fingerprint) => (None, Some(fingerprint)),
        };
        let claims = json!({
            "aud": AUDIENCE, "sub": grant.environment, "key": key, "service": service,
            "basin": grant.basin, "prefix": grant.prefix, "auto": grant.auto_prefix,
            "ops": operations, "exp": expires_at,
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
        let named = claims["ops"].as_array()?;
        let is_named = |each: &Operation| named.iter().any(|name| name == each.name());
        let authority = match (text("key"), text("service")) {
            (Some(basis), None) => Authority::Key(basis),
            (None, Some(fingerprint)) => Authority::Service(fingerprint),
            _ => return None,
        };
        Some(Grant {
            authority,
            environment: text("sub")?,
            basin: text("basin")?,
            prefix: text("prefix")?,
            auto_prefix: text("auto"),
            operations: Operation::ALL.into_iter().filter(is_named).collect(),
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
            authority: Authority::Key("root:00".to_owned()),
            environment: "env_1".to_owned(),
            basin: "basin-one".to_owned(),
            prefix: "org/o/env/prod/env1/runs/run_1/".to_owned(),
            auto_prefix: None,
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
        let authority = Authority::Service("f".to_owned());
        let other = Grant { authority, auto_prefix: Some("org/o".to_owned()), ..grant(60) };
        assert_eq!(issuer.read(&issuer.issue(&other).unwrap()), Some(other));
    }

    #[test]
    fn a_token_that_rests_on_nothing_opens_nothing() {
        let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 60;
        let mut claims = json!({ "aud": AUDIENCE, "sub": "e", "basin": "b", "prefix": "p/",
            "ops": ["append"], "exp": end });
        let read = |claims: &Value| {
            let key = EncodingKey::from_secret(&Secret::of("a").0);
            let token = encode(&Header::new(Algorithm::HS256), claims, &key).unwrap();
            issuer("a", &[]).read(&token).is_some()
        };
        assert!(!read(&claims));
        claims["key"] = json!("root:00");
        assert!(read(&claims));
        claims["service"] = json!("f");
        assert!(!read(&claims));
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
