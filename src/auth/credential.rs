//! What a request presents: its bearer, and the branch that it names (`runs-and-auth.md` 12.1, 12.5).

use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher as _, RandomState},
};

use axum::http::{
    HeaderMap, HeaderValue,
    header::{AUTHORIZATION, HeaderName},
};
use sha2::{Digest as _, Sha256};

/// More than this many bytes of bearer are refused unread. All headers of a request together may
/// have this size on Trigger.dev's own servers, so no working credential is longer.
pub(super) const MAX_BEARER_BYTES: usize = 16 * 1024;

/// What a bearer may stand after.
const SCHEME: &str = "Bearer ";

static BRANCH: HeaderName = HeaderName::from_static("x-trigger-branch");

/// `refs/…` prefixes that a branch name may be given with; any other `refs/…` names no branch.
const REF_PREFIXES: [&str; 6] =
    ["refs/heads/", "refs/remotes/", "refs/tags/", "refs/pull/", "refs/merge/", "refs/release/"];

/// Stands for the bearer that a request presents, where requests are counted by it; `None` if it
/// presents none. `by` is to be keyed at random, or the secret could be guessed from it.
pub fn digest_of_bearer(headers: &HeaderMap, by: &RandomState) -> Option<u64> {
    Some(by.hash_one(Credential::read(headers).ok()?.bearer()))
}

/// A digest that stands for a secret where it is remembered.
pub(super) type Fingerprint = [u8; 32];

/// The secret and the branch of one request. Its `Debug` shows neither.
pub struct Credential<'a> {
    bearer: Cow<'a, str>,
    branch: Option<Cow<'a, str>>,
}

/// Why there is no credential to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// `Authorization` is absent or blank.
    #[error("no bearer")]
    Missing,
    /// The bearer is longer than any that can be valid.
    #[error("the bearer is too long")]
    TooLong,
}

impl<'a> Credential<'a> {
    /// Reads `Authorization` and `x-trigger-branch`.
    ///
    /// A leading `Bearer ` (this case, one space) is dropped and the rest trimmed; a bare token will
    /// do as well. Only the first `Authorization` counts.
    pub fn read(headers: &'a HeaderMap) -> Result<Self, CredentialError> {
        let value = headers.get(AUTHORIZATION).ok_or(CredentialError::Missing)?;
        let bytes = value.as_bytes();
        if bytes.strip_prefix(SCHEME.as_bytes()).unwrap_or(bytes).len() > MAX_BEARER_BYTES {
            return Err(CredentialError::TooLong);
        }
        let bearer = match text(value) {
            Cow::Borrowed(text) => Cow::Borrowed(strip(text)),
            Cow::Owned(text) => Cow::Owned(strip(&text).to_owned()),
        };
        if bearer.is_empty() {
            return Err(CredentialError::Missing);
        }
        Ok(Self { bearer, branch: branch(headers) })
    }

    /// The secret itself. Never log it.
    pub(super) fn bearer(&self) -> &str {
        &self.bearer
    }

    /// The branch asked for. It may be empty (`refs/heads/`), which names a branch that never exists.
    pub(super) fn branch(&self) -> Option<&str> {
        self.branch.as_deref()
    }

    /// Stands for the pair of bearer and branch.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        // The length goes first, so that no bearer can end in what another has as its branch.
        hash.update((self.bearer.len() as u64).to_le_bytes());
        hash.update(self.bearer.as_bytes());
        if let Some(branch) = &self.branch {
            hash.update([1]);
            hash.update(branch.as_bytes());
        }
        hash.finalize().into()
    }
}

/// Stands for what somebody rests on in an environment. It is that of no credential: none is so long.
pub(super) fn fingerprint_of_basis(environment: &str, basis: &str) -> Fingerprint {
    let mut hash = Sha256::new();
    hash.update(u64::MAX.to_le_bytes());
    hash.update((environment.len() as u64).to_le_bytes());
    hash.update(environment.as_bytes());
    hash.update(basis.as_bytes());
    hash.finalize().into()
}

impl fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").finish_non_exhaustive()
    }
}

fn strip(value: &str) -> &str {
    value.strip_prefix(SCHEME).unwrap_or(value).trim()
}

/// A header's text as Node reads it: bytes beyond ASCII are Latin-1, whatever the sender meant.
fn text(value: &HeaderValue) -> Cow<'_, str> {
    match value.to_str() {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => value.as_bytes().iter().map(|byte| char::from(*byte)).collect(),
    }
}

fn branch(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let mut values = headers.get_all(&BRANCH).iter();
    let first = text(values.next()?);
    // Node joins a repeated header by commas, and so names no branch that exists. Taking the first
    // instead would let two hops disagree about the environment.
    let whole = values.fold(first, |all, next| Cow::Owned(format!("{all}, {}", text(next))));
    match whole {
        Cow::Borrowed(whole) => sanitize(whole).map(Cow::Borrowed),
        Cow::Owned(whole) => sanitize(&whole).map(|name| Cow::Owned(name.to_owned())),
    }
}

fn sanitize(name: &str) -> Option<&str> {
    if name.is_empty() {
        return None;
    }
    match REF_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        Some(rest) => Some(rest),
        None if name.starts_with("refs/") => None,
        None => Some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(bearer: &[u8], branches: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_bytes(bearer).unwrap());
        for branch in branches {
            headers.append("x-trigger-branch", branch.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_bearer_is_found_as_the_contract_says() {
        for (value, wanted) in [
            ("Bearer tr_dev_a", Some("tr_dev_a")),
            ("tr_dev_a", Some("tr_dev_a")),
            ("  tr_dev_a ", Some("tr_dev_a")),
            ("Bearer   tr_dev_a", Some("tr_dev_a")),
            ("bearer tr_dev_a", Some("bearer tr_dev_a")),
            ("Bearer Bearer a", Some("Bearer a")),
            ("Bearer", Some("Bearer")),
            ("Bearer ", None),
            ("   ", None),
            ("", None),
        ] {
            let headers = headers(value.as_bytes(), &[]);
            let read = Credential::read(&headers);
            assert_eq!(read.ok().as_ref().map(Credential::bearer), wanted, "{value:?}");
        }
        assert_eq!(Credential::read(&HeaderMap::new()).err(), Some(CredentialError::Missing));
        let long = headers(&[b'a'; MAX_BEARER_BYTES + 1], &[]);
        assert_eq!(Credential::read(&long).err(), Some(CredentialError::TooLong));
    }

    #[test]
    fn the_longest_bearer_may_be_called_one() {
        let bearer = "a".repeat(MAX_BEARER_BYTES);
        let read = |value: String| {
            let headers = headers(value.as_bytes(), &[]);
            Credential::read(&headers).map(|credential| credential.bearer().len())
        };
        assert_eq!(read(format!("Bearer {bearer}")), Ok(MAX_BEARER_BYTES));
        assert_eq!(read(format!("Bearer {bearer}a")), Err(CredentialError::TooLong));
    }

    #[test]
    fn the_branch_is_sanitized_as_the_contract_says() {
        for (values, wanted) in [
            (&[][..], None),
            (&[""], None),
            (&["feat/x"], Some("feat/x")),
            (&["Feat/X"], Some("Feat/X")),
            (&["refs/heads/feat/x"], Some("feat/x")),
            (&["refs/remotes/o"], Some("o")),
            (&["refs/tags/v1"], Some("v1")),
            (&["refs/pull/7"], Some("7")),
            (&["refs/merge/7"], Some("7")),
            (&["refs/release/7"], Some("7")),
            (&["refs/heads/refs/heads/x"], Some("refs/heads/x")),
            (&["refs/notes/x"], None),
            (&["refs/"], None),
            (&["refs"], Some("refs")),
            (&["refs/heads/"], Some("")),
            (&["a", "b"], Some("a, b")),
        ] {
            let headers = headers(b"k", values);
            assert_eq!(Credential::read(&headers).unwrap().branch(), wanted, "{values:?}");
        }
    }

    #[test]
    fn the_fingerprint_tells_bearer_and_branch_apart() {
        let print = |bearer: &str, branches: &[&str]| {
            Credential::read(&headers(bearer.as_bytes(), branches)).unwrap().fingerprint()
        };
        assert_eq!(print("ab", &["c"]), print("Bearer ab", &["refs/heads/c"]));
        let all = [
            print("ab", &[]),
            print("ab", &["refs/heads/"]),
            print("ab", &["c"]),
            print("a", &["bc"]),
            print("abc", &[]),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b), "{i}");
        }
    }

    #[test]
    fn no_debug_text_shows_the_secret() {
        let headers = headers(b"Bearer tr_dev_hush", &["branch"]);
        let shown = format!("{:?}", Credential::read(&headers).unwrap());
        assert!(!shown.contains("hush"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_header_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(AUTHORIZATION, value.clone());
                headers.append("x-trigger-branch", value);
                if let Ok(credential) = Credential::read(&headers) {
                    prop_assert!(!credential.bearer().is_empty());
                    credential.fingerprint();
                }
            }
        }
    }
}
