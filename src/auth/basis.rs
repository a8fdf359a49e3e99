//! What a key's holder was let in by, as a text: it holds no secret, and whoever has the same database
//! can judge by it again later, also another gateway.

use std::fmt::Write as _;

use super::judge::Basis;
use crate::replication::keys::KeyDigest;

const ROOT: &str = "root";
const ADDITIONAL: &str = "additional";

impl Basis {
    /// The text; none for public tokens, whose scopes are not part of what they rest on.
    pub fn to_text(&self) -> Option<String> {
        let (kind, digest, branch) = match self {
            Self::RootKey(digest, branch) => (ROOT, digest, branch),
            Self::AdditionalKey(digest, branch) => (ADDITIONAL, digest, branch),
            Self::Token { .. } => return None,
        };
        let mut text = format!("{kind}:");
        for byte in digest {
            let _ = write!(text, "{byte:02x}"); // a text always takes more
        }
        if let Some(branch) = branch {
            text.push(':');
            text.push_str(branch);
        }
        Some(text)
    }

    /// What such a text means.
    pub fn from_text(text: &str) -> Option<Basis> {
        let (kind, rest) = text.split_once(':')?;
        let (digest, branch) = match rest.split_once(':') {
            Some((digest, branch)) => (digest, Some(branch.into())),
            None => (rest, None),
        };
        let digest = parse(digest)?;
        match kind {
            ROOT => Some(Self::RootKey(digest, branch)),
            ADDITIONAL => Some(Self::AdditionalKey(digest, branch)),
            _ => None,
        }
    }
}

fn parse(hex: &str) -> Option<KeyDigest> {
    let mut digest = KeyDigest::default();
    if hex.len() != 2 * digest.len() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (n, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::keys::digest;

    #[test]
    fn the_text_says_all_that_a_judgement_needs_and_nothing_of_the_secret() {
        let key = digest("tr_prod_hush");
        for basis in [
            Basis::RootKey(key, None),
            Basis::RootKey(key, Some("feat/x:y".into())),
            Basis::AdditionalKey(key, Some("".into())),
        ] {
            let text = basis.to_text().unwrap();
            assert!(!text.contains("hush"));
            let again = Basis::from_text(&text).unwrap();
            assert_eq!(format!("{again:?}"), format!("{basis:?}"), "{text}");
        }
        let token = Basis::Token { subject: "env".into(), signed_by: key };
        assert_eq!(token.to_text(), None);
    }

    #[test]
    fn any_other_text_means_nothing() {
        let hex = "0".repeat(64);
        for text in [
            "",
            ":",
            "root",
            "root:",
            &format!("root:{}", &hex[1..]),
            &format!("root:+{}", &hex[1..]),
            &format!("root:ä{}", &hex[2..]),
            &format!("other:{hex}"),
        ] {
            assert!(Basis::from_text(text).is_none(), "{text}");
        }
        assert!(Basis::from_text(&format!("root:{hex}")).is_some());
    }
}
