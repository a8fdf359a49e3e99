//! The service token: what a Trigger.dev webapp presents that keeps its streams here
//! (`streams-and-sessions.md`, 4.3 and 11).

use sha2::{Digest as _, Sha256};

/// The tokens that are accepted, as fingerprints. None by default: then nobody is the webapp.
#[derive(Clone, Debug, Default)]
pub struct ServiceTokens(Vec<String>);

impl ServiceTokens {
    /// Those of these texts.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> ServiceTokens {
        ServiceTokens(texts.into_iter().map(fingerprint).collect())
    }

    /// The fingerprint of this one, if it is accepted. It is compared as a fingerprint, so that time
    /// tells nothing of how much of it is right.
    pub fn find(&self, bearer: &str) -> Option<&str> {
        let presented = fingerprint(bearer);
        self.0.iter().find(|known| **known == presented).map(String::as_str)
    }

    /// Whether the one of this fingerprint is accepted still.
    pub fn accepts(&self, fingerprint: &str) -> bool {
        self.0.iter().any(|known| known == fingerprint)
    }
}

fn fingerprint(text: &str) -> String {
    let digest = Sha256::new_with_prefix(b"runwire s2 service token\0").chain_update(text);
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_are_set_are_accepted() {
        let tokens = ServiceTokens::of(["one", "two"]);
        let one = tokens.find("one").unwrap();
        assert!(tokens.accepts(one) && !one.contains("one"));
        assert!(tokens.find("on").is_none() && tokens.find("").is_none());
        assert!(!ServiceTokens::of(["two"]).accepts(one));
        assert!(ServiceTokens::default().find("").is_none());
    }
}
