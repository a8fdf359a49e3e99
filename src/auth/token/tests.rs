use jsonwebtoken::EncodingKey;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: u64 = 1_788_246_400;
const KEY: &str = "tr_prod_signs";

fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(second)
}

fn sign(header: &Value, claims: &Value, key: &str, algorithm: Algorithm) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_secret(key.as_bytes());
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, algorithm).unwrap();
    format!("{signed}.{signature}")
}

fn claims() -> Value {
    json!({
        "sub": "env", "pub": true, "scopes": ["read:runs:run_x"], "iss": ISSUER, "aud": AUDIENCE,
        "iat": NOW - 10, "exp": NOW + 10,
    })
}

/// The example's claims with some replaced; a null removes one.
fn token(changes: Value) -> String {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    sign(&json!({"alg": "HS256"}), &claims, KEY, Algorithm::HS256)
}

fn verify(token: &str, keys: &[&str]) -> Result<Verified, TokenError> {
    let Presented::PublicToken(token) = classify(token) else {
        panic!("not taken for a public access token");
    };
    let keys: Vec<_> = keys.iter().map(|key| SigningKey::new(*key)).collect();
    token.verify(&keys, at(NOW), TokenRules::default())
}

#[test]
fn bearers_are_sorted_into_the_three_paths() {
    let kind = |bearer: &str| match classify(bearer) {
        Presented::PublicToken(_) => "token",
        Presented::AdditionalKey => "additional",
        Presented::RootKey => "root",
    };
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let with_payload = |text: &str| format!("e30.{}.sig", part(text));
    for (bearer, wanted) in [
        (token(json!({})), "token"),
        (with_payload(r#"{"pub":true}"#), "token"),
        (with_payload(r#"{"pub":false,"pub":true}"#), "token"),
        (with_payload(r#"{"pub":true,"pub":false}"#), "root"),
        (with_payload(r#"{"pub":"true"}"#), "root"),
        (with_payload(r#"{"pub":1}"#), "root"),
        (with_payload(r#"[true]"#), "root"),
        (with_payload("null"), "root"),
        (with_payload(r#"{"pub":true"#), "root"),
        (token(json!({"pub": null})), "root"),
        (format!("{}.x", with_payload(r#"{"pub":true}"#)), "root"),
        (part(r#"{"pub":true}"#), "root"),
        (format!("e30.{}", part(r#"{"pub":true}"#)), "root"),
        ("tr_prod_sk_0123456789abcdefghijKLMN".into(), "additional"),
        ("tr_dev_sk_0123456789abcdefghijKLMN".into(), "additional"),
        ("tr_stg_sk_0123456789abcdefghijKLMN".into(), "additional"),
        ("tr_preview_sk_0123456789abcdefghijKLMN".into(), "additional"),
        ("tr_prod_sk_0123456789abcdefghijKLM".into(), "root"),
        ("tr_prod_sk_0123456789abcdefghijKLMNO".into(), "root"),
        ("tr_prod_sk_0123456789abcdefghijKLM_".into(), "root"),
        ("tr_prod_sk_0123456789abcdefghijKLMN\n".into(), "root"),
        ("tr_test_sk_0123456789abcdefghijKLMN".into(), "root"),
        ("tr_prod_0123456789abcdefghijKLMN".into(), "root"),
        ("pk_prod_0123456789abcdefghij".into(), "root"),
        ("tr_pat_0123456789".into(), "root"),
        ("..".into(), "root"),
        ("garbage".into(), "root"),
    ] {
        assert_eq!(kind(&bearer), wanted, "{bearer}");
    }
}

#[test]
fn a_good_token_says_what_it_grants_and_when_it_ends() {
    let verified = verify(&token(json!({})), &[KEY]).unwrap();
    assert_eq!(verified.ability, Ability::from_scopes(["read:runs:run_x"]));
    assert_eq!(verified.expires_at, Some(at(NOW + 10)));
    assert_eq!(verified.skip_columns, None);
    assert_eq!(verified.key_index, 0);
    let rotated = verify(&token(json!({})), &["new", "newer", KEY]).unwrap();
    assert_eq!(rotated.key_index, 2);
}

#[test]
fn claims_are_judged_as_the_contract_says() {
    use TokenError::{Audience, Expiry, IssuedAt, Issuer, NotBefore};
    let cases = [
        (json!({"exp": NOW + 1}), None),
        (json!({"exp": NOW as f64 + 0.5}), None),
        (json!({"exp": 1e300}), None),
        (json!({"exp": NOW}), Some(Expiry)),
        (json!({"exp": NOW - 1}), Some(Expiry)),
        (json!({"exp": -1}), Some(Expiry)),
        (json!({"exp": (NOW + 9).to_string()}), Some(Expiry)),
        (json!({"exp": null}), Some(Expiry)),
        (json!({"nbf": NOW}), None),
        (json!({"nbf": NOW - 1}), None),
        (json!({"nbf": NOW + 1}), Some(NotBefore)),
        (json!({"nbf": "0"}), Some(NotBefore)),
        (json!({"iat": NOW + 1000}), None),
        (json!({"iat": null}), None),
        (json!({"iat": "0"}), Some(IssuedAt)),
        (json!({"aud": [AUDIENCE]}), None),
        (json!({"aud": ["https://else.where", AUDIENCE, 7]}), None),
        (json!({"aud": ["https://else.where"]}), Some(Audience)),
        (json!({"aud": []}), Some(Audience)),
        (json!({"aud": [[AUDIENCE]]}), Some(Audience)),
        (json!({"aud": "https://api.trigger.dev/"}), Some(Audience)),
        (json!({"aud": null}), Some(Audience)),
        (json!({"iss": "https://id.trigger.dev.evil"}), Some(Issuer)),
        (json!({"iss": [ISSUER]}), Some(Issuer)),
        (json!({"iss": null}), Some(Issuer)),
    ];
    for (changes, wanted) in cases {
        assert_eq!(verify(&token(changes.clone()), &[KEY]).err(), wanted, "{changes}");
    }
}

#[test]
fn a_fraction_of_a_second_ends_with_its_second() {
    let verified = verify(&token(json!({"exp": NOW as f64 + 0.5})), &[KEY]).unwrap();
    assert_eq!(verified.expires_at, Some(at(NOW + 1)));
}

#[test]
fn foreign_forged_and_tampered_signatures_are_refused() {
    use TokenError::Signature;
    let good = token(json!({}));
    assert_eq!(verify(&good, &["tr_prod_other"]).err(), Some(Signature));
    assert_eq!(verify(&good, &[]).err(), Some(Signature));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    assert_eq!(verify(&format!("{signed}."), &[KEY]).err(), Some(Signature));
    assert_eq!(verify(&format!("{signed}.{}", &signature[1..]), &[KEY]).err(), Some(Signature));
    assert_eq!(verify(&format!("{signed}.{signature}="), &[KEY]).err(), Some(Signature));
    let other = token(json!({"scopes": ["admin"]}));
    let (wider, _) = other.rsplit_once('.').unwrap();
    assert_eq!(verify(&format!("{wider}.{signature}"), &[KEY]).err(), Some(Signature));
    // The signature comes before the claims.
    assert_eq!(verify(&token(json!({"exp": 0})), &["other"]).err(), Some(Signature));
    let unsecret = sign(&json!({"alg": "HS256"}), &claims(), "", Algorithm::HS256);
    assert_eq!(verify(&unsecret, &[""]).err(), Some(Signature), "an empty secret");
}

#[test]
fn any_algorithm_but_hs256_is_refused() {
    for (algorithm, name) in [(Algorithm::HS384, "HS384"), (Algorithm::HS512, "HS512")] {
        let token = sign(&json!({"alg": name}), &claims(), KEY, algorithm);
        assert_eq!(verify(&token, &[KEY]).err(), Some(TokenError::Algorithm), "{name}");
    }
    for header in [
        json!({"alg": "none"}),
        json!({"alg": "None"}),
        json!({"alg": "hs256"}),
        json!({"alg": "RS256"}),
        json!({"alg": ["HS256"]}),
        json!({"alg": null}),
        json!({}),
        json!([]),
        json!({"alg": "HS256", "crit": ["b64"], "b64": false}),
        json!({"alg": "HS384"}),
    ] {
        let token = sign(&header, &claims(), KEY, Algorithm::HS256);
        assert_eq!(verify(&token, &[KEY]).err(), Some(TokenError::Algorithm), "{header}");
        let (signed, _) = token.rsplit_once('.').unwrap();
        let bare = format!("{signed}.");
        assert_eq!(verify(&bare, &[KEY]).err(), Some(TokenError::Algorithm), "{header} unsigned");
    }
}

#[test]
fn lax_rules_accept_what_upstream_does_and_nothing_beyond() {
    let lax = |token: &str| {
        let Presented::PublicToken(token) = classify(token) else { panic!("no token") };
        token.verify([&SigningKey::new(KEY)], at(NOW), TokenRules { lax: true })
    };
    for (algorithm, name) in
        [(Algorithm::HS256, "HS256"), (Algorithm::HS384, "HS384"), (Algorithm::HS512, "HS512")]
    {
        let header = json!({ "alg": name });
        assert_eq!(
            lax(&sign(&header, &claims(), KEY, algorithm)).unwrap().expires_at,
            Some(at(NOW + 10))
        );
        assert!(lax(&sign(&header, &claims(), "other", algorithm)).is_err(), "{name}");
    }
    let mixed = sign(&json!({"alg": "HS512"}), &claims(), KEY, Algorithm::HS256);
    assert_eq!(lax(&mixed).err(), Some(TokenError::Signature));
    assert_eq!(lax(&token(json!({"exp": null}))).unwrap().expires_at, None);
    for exp in [json!(NOW), json!("never"), json!(false)] {
        assert_eq!(lax(&token(json!({ "exp": exp }))).err(), Some(TokenError::Expiry));
    }
    for name in ["none", "RS256", "HS1"] {
        let bare = sign(&json!({ "alg": name }), &claims(), KEY, Algorithm::HS256);
        assert_eq!(lax(&bare).err(), Some(TokenError::Algorithm), "{name}");
    }
}

#[test]
fn scopes_and_columns_of_a_wrong_type_give_nothing() {
    let none = Ability::from_scopes::<&str>([]);
    for scopes in [json!("read:all"), json!({"0": "admin"}), json!(7), Value::Null] {
        let verified = verify(&token(json!({ "scopes": scopes })), &[KEY]).unwrap();
        assert_eq!(verified.ability, none);
    }
    let mixed = verify(&token(json!({"scopes": [1, "read:runs", null]})), &[KEY]).unwrap();
    assert_eq!(mixed.ability, Ability::from_scopes(["read:runs"]));
    for realtime in
        [json!({"skipColumns": "payload"}), json!({"skipColumns": {}}), json!([]), json!(7)]
    {
        let verified = verify(&token(json!({ "realtime": realtime })), &[KEY]).unwrap();
        assert_eq!(verified.skip_columns, None, "{realtime}");
    }
    let realtime = json!({"skipColumns": ["payload", 1, "output"]});
    let verified = verify(&token(json!({ "realtime": realtime })), &[KEY]).unwrap();
    assert_eq!(verified.skip_columns.unwrap()[..], ["payload".to_owned(), "output".to_owned()]);
}

#[test]
fn no_debug_text_shows_a_key_or_a_token() {
    let good = token(json!({}));
    let Presented::PublicToken(parsed) = classify(&good) else { panic!() };
    let shown = format!("{parsed:?} {:?}", SigningKey::new(KEY));
    assert!(!shown.contains("signs") && !shown.contains("eyJ"), "{shown}");
}

proptest! {
    #[test]
    fn any_text_is_classified_and_refused_without_panic(bearer in ".*") {
        if let Presented::PublicToken(token) = classify(&bearer) {
            prop_assert!(token.verify([&SigningKey::new(KEY)], at(NOW), TokenRules::default()).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_in_the_parts_are_refused_without_panic(
        header in proptest::collection::vec(any::<u8>(), 0..60),
        signature in proptest::collection::vec(any::<u8>(), 0..60),
        more in proptest::collection::btree_map("[a-z]{1,6}", ".*", 0..4),
    ) {
        let mut claims = claims();
        for (name, value) in more {
            claims[name] = value.into();
        }
        claims["pub"] = true.into();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let bearer =
            format!("{}.{}.{}", part(&header), part(claims.to_string().as_bytes()), part(&signature));
        prop_assert!(verify(&bearer, &[KEY]).is_err());
    }

    #[test]
    fn one_changed_character_spoils_a_token(at_char in any::<prop::sample::Index>(), to in "[A-Za-z0-9_-]") {
        let good = token(json!({}));
        let i = at_char.index(good.len());
        let mut bad = good.clone();
        bad.replace_range(i..=i, &to);
        // A change may also make it something else than a public access token.
        if bad != good && let Presented::PublicToken(token) = classify(&bad) {
            prop_assert!(token.verify([&SigningKey::new(KEY)], at(NOW), TokenRules::default()).is_err(), "{}", bad);
        }
    }
}
