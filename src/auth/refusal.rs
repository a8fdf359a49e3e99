//! Why somebody is not let in, in the words of the contract.

use crate::lease::Lease;

/// A refusal, as the contract tells clients of it (`runs-and-auth.md` 15).
///
/// `http` gives it a status. It never says more than the client may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No `Authorization`, or a blank one. 401.
    MissingKey,
    /// An API key that opens nothing, or a token that is no public access token. 401.
    InvalidKey,
    /// A preview environment's key came without a branch. 401.
    BranchRequired,
    /// The environment has no such branch, or it is archived. 401.
    NoMatchingBranch,
    /// A public access token that names no environment of a living project. 401.
    InvalidPublicAccessToken,
    /// A public access token that is expired, forged, or made for somebody else. 401.
    PublicAccessTokenIsInvalid,
    /// Nobody can tell at present, since the database does not answer in time. 503 with
    /// `Retry-After`: a good credential must not look bad because of us.
    Unavailable,
}

impl Refusal {
    /// The `error` member of the body, word for word.
    pub const fn message(&self) -> &'static str {
        match self {
            Self::MissingKey => "Invalid or Missing API key",
            Self::InvalidKey => "Invalid API key",
            Self::BranchRequired => "x-trigger-branch header required for preview env",
            Self::NoMatchingBranch => "No matching branch env",
            Self::InvalidPublicAccessToken => "Invalid Public Access Token",
            Self::PublicAccessTokenIsInvalid => "Public Access Token is invalid",
            Self::Unavailable => "Service Unavailable",
        }
    }
}

/// Left in a lease when its credential is good, but for something else than before.
const CHANGED: u8 = u8::MAX;

impl Refusal {
    /// Those that end what was open.
    const ENDING: [Refusal; 5] = [
        Self::InvalidKey,
        Self::BranchRequired,
        Self::NoMatchingBranch,
        Self::InvalidPublicAccessToken,
        Self::PublicAccessTokenIsInvalid,
    ];

    /// Why a lease is over. `None`: it is not, or its credential would be let in again, to ask anew.
    pub fn of(lease: &Lease) -> Option<Refusal> {
        Self::ENDING.get(usize::from(lease.over()?) - 1).copied()
    }

    /// What is left in a lease that ends with this refusal.
    pub(super) fn code(refusal: Option<Refusal>) -> u8 {
        let place = Self::ENDING.iter().position(|ending| Some(*ending) == refusal);
        place.map_or(CHANGED, |place| place as u8 + 1)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Refusal {}
