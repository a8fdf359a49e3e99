//! Who is asking, and what they may do: the door that every request passes first.
//!
//! [`Door::admit`] turns a request's headers into a [`Caller`] or a [`Refusal`]
//! (`runs-and-auth.md` 12). The resource then asks the caller's [`Ability`] whether its scopes grant
//! what the request touches (13).

mod barrier;
mod basis;
mod credential;
mod door;
mod expiry;
mod facts;
mod grant;
mod grants;
mod judge;
mod keyring;
mod lookup;
mod meet;
mod memory;
mod mint;
mod refusal;
mod registry;
mod scope;
mod settings;
mod token;
mod upkeep;

pub use credential::digest_of_bearer;
pub use door::Door;
pub use expiry::{Expiry, NoSpan};
pub use grant::Caller;
pub use mint::{MintError, Wish};
pub use refusal::Refusal;
pub use scope::{Ability, Resource, Scope};
pub use settings::Settings;
pub use token::TokenRules;
