//! From facts to a verdict: what a key or a token opens, once the database has spoken.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    environments::{EnvironmentType, KeyHolder, Signer},
    refusal::Refusal,
    scope::Ability,
    token::{PublicToken, TokenError},
};

/// Somebody who was let in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The environment whose runs are meant; a branch's own id.
    pub environment_id: Arc<str>,
    /// What the caller may do there.
    pub ability: Arc<Ability>,
    /// When the credential ends: a token's `exp`, a rotated key's grace, an additional key's expiry.
    /// A response that is held open ends then too.
    pub expires_at: Option<SystemTime>,
    /// Columns that the token asks to be left out (claim `realtime.skipColumns`). Any text can be among them.
    pub skip_columns: Option<Arc<[String]>>,
    /// The shortest time between two answers that the token asks for (claim `realtime.throttleMs`).
    pub throttle: Option<Duration>,
}

/// A caller as long as nothing has ended.
#[derive(Clone)]
pub(super) struct Verdict {
    pub caller: Caller,
    /// What is said once `expires_at` has passed.
    pub once_expired: Refusal,
}

impl Verdict {
    /// Heap bytes, roughly.
    pub fn weight(&self) -> usize {
        let scopes = match &*self.caller.ability {
            Ability::Full => 0,
            Ability::Scoped(scopes) => scopes.iter().map(|scope| scope.weight()).sum(),
        };
        let columns = self.caller.skip_columns.iter().flat_map(|columns| columns.iter());
        let columns: usize = columns.map(|column| size_of::<String>() + column.len()).sum();
        self.caller.environment_id.len() + size_of::<Ability>() + scopes + columns + 64
    }
}

/// Applies the branch rules of `runs-and-auth.md` 12.5 to what a key opens.
pub(super) fn of_key(holder: KeyHolder, branch: Option<&str>) -> Result<Verdict, Refusal> {
    let environment_id = match (holder.environment_type, branch) {
        (EnvironmentType::Preview, None) => return Err(Refusal::BranchRequired),
        (EnvironmentType::Development, None | Some("default")) => holder.environment_id,
        (EnvironmentType::Staging | EnvironmentType::Production, _) => holder.environment_id,
        (EnvironmentType::Unknown, None) => holder.environment_id,
        // An empty name is what `refs/heads/` leaves, and no branch has it.
        (_, Some("")) => return Err(Refusal::NoMatchingBranch),
        (EnvironmentType::Preview | EnvironmentType::Development, Some(_)) => {
            holder.branch_id.ok_or(Refusal::NoMatchingBranch)?
        }
        // Whether its branches count is anybody's guess, so none is granted.
        (EnvironmentType::Unknown, Some(_)) => return Err(Refusal::NoMatchingBranch),
    };
    let ability = match holder.scopes {
        None => Ability::Full,
        Some(scopes) if scopes.iter().any(|scope| scope == "admin") => Ability::Full,
        Some(scopes) => Ability::from_scopes(scopes),
    };
    let caller = Caller {
        environment_id,
        ability: Arc::new(ability),
        expires_at: holder.expires_at,
        skip_columns: None,
        throttle: None,
    };
    Ok(Verdict { caller, once_expired: Refusal::InvalidKey })
}

/// Verifies a token against the keys of the environment that it names (`runs-and-auth.md` 12.4).
pub(super) fn of_token(signer: &Signer, token: &PublicToken<'_>) -> Result<Verdict, TokenError> {
    let now = SystemTime::now();
    let rotated = || signer.rotated.iter().filter(|(_, end)| *end > now);
    let keys = std::iter::once(&signer.key).chain(rotated().map(|(key, _)| key));
    token.verify(keys, now).map(|verified| {
        // A token cannot outlive the grace time of the rotated key that signed it.
        let grace = verified.key_index.checked_sub(1).and_then(|i| rotated().nth(i));
        let end = grace.map_or(verified.expires_at, |(_, end)| verified.expires_at.min(*end));
        let caller = Caller {
            environment_id: Arc::clone(&signer.environment_id),
            ability: Arc::new(verified.ability),
            expires_at: Some(end),
            skip_columns: verified.skip_columns,
            throttle: verified.throttle,
        };
        Verdict { caller, once_expired: Refusal::PublicAccessTokenIsInvalid }
    })
}
