//! From facts to a judgement: what a credential opens (`runs-and-auth.md` 12.2 to 12.5), and whether
//! what was once let in would still be.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    facts::Facts,
    refusal::Refusal,
    scope::Ability,
    token::{PublicToken, TokenError, TokenRules},
};
use crate::replication::keys::{EnvironmentRow, EnvironmentType, KeyDigest, SigningKey};

/// More rotated keys of one environment are not tried; those whose grace lasts longest are.
const MAX_ROTATED: usize = 100;

/// What is refused although its facts are in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Whether public tokens of an archived branch are accepted until they expire.
    pub archived_branch_tokens: bool,
    /// How public tokens are verified.
    pub tokens: TokenRules,
}

/// What a judgement rests on: enough to repeat it without the secret.
#[derive(Clone, Debug)]
pub(super) enum Basis {
    /// A root key or a rotated one, and the branch that was named with it.
    RootKey(KeyDigest, Option<Box<str>>),
    /// The same for an additional key.
    AdditionalKey(KeyDigest, Option<Box<str>>),
    /// A public token of this environment that this key has signed.
    Token { subject: Arc<str>, signed_by: KeyDigest },
}

/// What facts say of a basis.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// The environment whose runs are meant.
    pub environment: Arc<str>,
    /// The environment whose keys count.
    pub root: Arc<str>,
    pub project: Arc<str>,
    /// An additional key's scopes; none for what is unrestricted, and for tokens, which bring theirs.
    pub scopes: Option<Arc<[String]>>,
    /// When the facts themselves end it, in milliseconds since 1970.
    pub ends: Option<u64>,
}

impl Standing {
    pub fn ability(&self) -> Ability {
        match &self.scopes {
            None => Ability::Full,
            Some(scopes) if scopes.iter().any(|scope| scope == "admin") => Ability::Full,
            Some(scopes) => Ability::from_scopes(scopes.iter()),
        }
    }
}

/// The time as facts have it.
pub(super) fn millis(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The same as a time. What lies too far ahead is taken for the year 9999.
pub(super) fn instant(millis: u64) -> SystemTime {
    const LATEST: u64 = 253_402_300_799_000;
    UNIX_EPOCH + Duration::from_millis(millis.min(LATEST))
}

impl Basis {
    /// What the facts say of it at this time.
    pub fn judge(&self, facts: &Facts, rules: &Rules, now: u64) -> Result<Standing, Refusal> {
        match self {
            Self::RootKey(key, branch) => {
                // The present key decides, also when it opens nothing.
                let (holder, ends) = match facts.by_root_key(key) {
                    Some(holder) => (holder, None),
                    None => {
                        let rotated = facts.by_rotated_key(key).filter(|row| row.ends > now);
                        let rotated = rotated.ok_or(Refusal::InvalidKey)?;
                        let holder = facts.environment(&rotated.environment);
                        (holder.ok_or(Refusal::InvalidKey)?, Some(rotated.ends))
                    }
                };
                of_key(facts, holder, branch.as_deref(), None, ends)
            }
            Self::AdditionalKey(key, branch) => {
                let row = facts.by_additional_key(key).ok_or(Refusal::InvalidKey)?;
                let holder = facts.environment(&row.environment).ok_or(Refusal::InvalidKey)?;
                if row.revoked || row.ends.is_some_and(|ends| ends <= now) {
                    return Err(Refusal::InvalidKey);
                }
                let scopes = row.scopes.clone().unwrap_or_default();
                of_key(facts, holder, branch.as_deref(), Some(scopes), row.ends)
            }
            Self::Token { subject, signed_by } => {
                let (environment, mut keys) = signers(facts, subject, rules, now)?;
                let (_, ends) = keys
                    .find(|(key, _)| key.digest() == signed_by)
                    .ok_or(Refusal::PublicAccessTokenIsInvalid)?;
                Ok(Standing {
                    environment: Arc::clone(&environment.id),
                    root: Arc::clone(environment.root()),
                    project: Arc::clone(&environment.project),
                    scopes: None,
                    ends,
                })
            }
        }
    }
}

/// Applies the branch rules of `runs-and-auth.md` 12.5 to the environment that a key belongs to.
fn of_key(
    facts: &Facts,
    holder: &EnvironmentRow,
    branch: Option<&str>,
    scopes: Option<Arc<[String]>>,
    ends: Option<u64>,
) -> Result<Standing, Refusal> {
    use EnvironmentType::*;
    if !facts.is_alive(&holder.project) {
        return Err(Refusal::InvalidKey);
    }
    let environment = match (holder.kind, branch) {
        (Preview, None) => return Err(Refusal::BranchRequired),
        (Development, None | Some("default")) => &holder.id,
        (Staging | Production, _) => &holder.id,
        (Unknown, None) => &holder.id,
        // An empty name is what `refs/heads/` leaves, and no branch has it.
        (_, Some("")) => return Err(Refusal::NoMatchingBranch),
        (Preview | Development, Some(name)) => {
            &facts.branch(&holder.id, name).ok_or(Refusal::NoMatchingBranch)?.id
        }
        // Whether its branches count is anybody's guess, so none is granted.
        (Unknown, Some(_)) => return Err(Refusal::NoMatchingBranch),
    };
    Ok(Standing {
        environment: Arc::clone(environment),
        root: Arc::clone(&holder.id),
        project: Arc::clone(&holder.project),
        scopes,
        ends,
    })
}

/// The environment of a token and the keys that may have signed it, the present one first, each with
/// the end of its grace (`runs-and-auth.md` 12.4, steps 2, 3 and 5).
fn signers<'f>(
    facts: &'f Facts,
    subject: &str,
    rules: &Rules,
    now: u64,
) -> Result<(&'f EnvironmentRow, impl Iterator<Item = (&'f SigningKey, Option<u64>)>), Refusal> {
    let environment = facts.environment(subject).ok_or(Refusal::InvalidPublicAccessToken)?;
    if !facts.is_alive(&environment.project) {
        return Err(Refusal::InvalidPublicAccessToken);
    }
    // `archivedAt` is left alone by default: a token for an archived branch works until it expires.
    if environment.archived && !rules.archived_branch_tokens {
        return Err(Refusal::InvalidPublicAccessToken);
    }
    let root = facts.environment(environment.root()).ok_or(Refusal::InvalidPublicAccessToken)?;
    let mut rotated: Vec<_> = facts.rotated(&root.id).filter(|row| row.ends > now).collect();
    rotated.sort_unstable_by_key(|row| std::cmp::Reverse(row.ends));
    rotated.truncate(MAX_ROTATED);
    let rotated = rotated.into_iter().map(|row| (&row.key, Some(row.ends)));
    Ok((environment, std::iter::once((&root.key, None)).chain(rotated)))
}

/// The keys that a token of this environment may have been signed with. To be tried where nobody
/// waits for the facts.
pub(super) fn signing_keys(
    facts: &Facts,
    subject: &str,
    rules: &Rules,
    now: u64,
) -> Result<Vec<SigningKey>, Refusal> {
    Ok(signers(facts, subject, rules, now)?.1.map(|(key, _)| key.clone()).collect())
}

/// What a token itself says, once a key was found that has signed it.
pub(super) struct Verified {
    pub basis: Basis,
    pub claims: super::token::Verified,
}

/// Verifies a token with the keys that its environment has. Whether the refusal can change when the
/// keys do is told with it.
pub(super) fn verify(
    token: &PublicToken<'_>,
    subject: &str,
    keys: &[SigningKey],
    rules: &Rules,
) -> Result<Verified, (Refusal, bool)> {
    match token.verify(keys, SystemTime::now(), rules.tokens) {
        Ok(claims) => {
            let signed_by = *keys[claims.key_index].digest();
            Ok(Verified { basis: Basis::Token { subject: subject.into(), signed_by }, claims })
        }
        Err(error) => Err((Refusal::PublicAccessTokenIsInvalid, error == TokenError::Signature)),
    }
}
