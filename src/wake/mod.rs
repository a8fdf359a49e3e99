//! Wake lists: few are woken at once, many in slices, so that whoever else wakes meanwhile is served in
//! between. It knows nobody who waits, nor what for.
//!
//! [`List`] is who waits for the same, [`Rounds`] are the long lists that are being woken.

mod list;
mod rounds;

pub use list::{List, Lone, Place, Woken};
pub use rounds::Rounds;
