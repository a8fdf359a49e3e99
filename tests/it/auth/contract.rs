//! What each credential opens, by the database and from memory alike.

use super::*;

#[tokio::test]
async fn api_keys_open_what_the_contract_says() {
    let trial = Trial::new().await;
    api_keys(&trial.door()).await;
    let kept = Kept::new(&trial, "auth_keys", Settings::default()).await;
    api_keys(&kept.door).await;
    kept.stop().await;
}

/// By the database or from memory, it is the same.
async fn api_keys(door: &Door) {
    let cases: &[(&str, Option<&str>, Result<&str, &str>)] = &[
        ("", None, Err(MISSING)),
        ("tr_prod_root", None, Ok("prod")),
        ("tr_prod_root", Some("feat/x"), Ok("prod")),
        ("tr_prod_root", Some("refs/heads/"), Ok("prod")),
        ("tr_stg_root", Some("feat/x"), Ok("stg")),
        ("short", None, Ok("other")),
        ("tr_prod_grace", None, Ok("prod")),
        ("tr_prod_ended", None, Err(INVALID)),
        ("tr_prod_deadgrace", None, Err(INVALID)),
        ("tr_prod_dead", None, Err(INVALID)),
        ("tr_prod_nobody", None, Err(INVALID)),
        ("tr_prod_roo", None, Err(INVALID)),
        ("tr_prod_ROOT", None, Err(INVALID)),
        ("pk_tr_prod_root", None, Err(INVALID)),
        ("tr_pat_0123456789", None, Err(INVALID)),
        ("tr_uat_0123456789", None, Err(INVALID)),
        ("' OR true --", None, Err(INVALID)),
        ("%", None, Err(INVALID)),
        ("tr_dev_root", None, Ok("dev")),
        ("tr_dev_root", Some("default"), Ok("dev")),
        ("tr_dev_root", Some("refs/heads/default"), Ok("dev")),
        ("tr_dev_root", Some("x"), Ok("devx")),
        ("tr_dev_root", Some("nope"), Err(BAD_BRANCH)),
        ("tr_dev_root", Some("refs/heads/"), Err(BAD_BRANCH)),
        ("tr_preview_root", None, Err(NO_BRANCH)),
        ("tr_preview_root", Some(""), Err(NO_BRANCH)),
        ("tr_preview_root", Some("refs/notes/x"), Err(NO_BRANCH)),
        ("tr_preview_root", Some("feat/x"), Ok("feat")),
        ("tr_preview_root", Some("refs/heads/feat/x"), Ok("feat")),
        ("tr_preview_root", Some("Feat/x"), Err(BAD_BRANCH)),
        ("tr_preview_root", Some("default"), Ok("default")),
        ("tr_preview_root", Some("old"), Err(BAD_BRANCH)),
        ("tr_preview_root", Some("x"), Err(BAD_BRANCH)),
        ("tr_preview_root", Some("refs/heads/"), Err(BAD_BRANCH)),
        ("tr_preview_grace", Some("feat/x"), Ok("feat")),
        // a branch's own key opens nothing
        ("tr_preview_feat", None, Err(NO_BRANCH)),
        ("tr_preview_feat", Some("feat/x"), Err(BAD_BRANCH)),
    ];
    for (bearer, branch, wanted) in cases {
        let found = outcome(door, bearer, *branch).await;
        assert_eq!(found.as_deref().map_err(|text| *text), *wanted, "{bearer} at {branch:?}");
    }
    assert_eq!(door.admit(&HeaderMap::new()).await.unwrap_err().message(), MISSING);
    let root = admit(door, "tr_prod_root", None).await.unwrap();
    assert_eq!((&*root.ability, root.expires_at), (&Ability::Full, None));
    let grace = admit(door, "tr_prod_grace", None).await.unwrap().expires_at.unwrap();
    let left = grace.duration_since(SystemTime::now()).unwrap();
    assert!((3500..=3600).contains(&left.as_secs()), "grace ends in {left:?}");
}

#[tokio::test]
async fn additional_keys_open_what_their_row_says() {
    let trial = Trial::new().await;
    additional_keys(&trial.door()).await;
    let kept = Kept::new(&trial, "auth_additional", Settings::default()).await;
    additional_keys(&kept.door).await;
    kept.stop().await;
}

async fn additional_keys(door: &Door) {
    for (name, branch, wanted) in [
        ("full", None, Ok("prod")),
        ("read", Some("feat/x"), Ok("prod")),
        ("none", None, Ok("prod")),
        ("revoked", None, Err(INVALID)),
        ("expired", None, Err(INVALID)),
        ("dead", None, Err(INVALID)),
        ("unknown", None, Err(INVALID)),
        ("preview", None, Err(NO_BRANCH)),
        ("preview", Some("feat/x"), Ok("feat")),
        ("preview", Some("old"), Err(BAD_BRANCH)),
    ] {
        let found = outcome(door, &additional(name), branch).await;
        assert_eq!(found.as_deref().map_err(|text| *text), wanted, "{name} at {branch:?}");
    }
    let ability = |name| {
        let door = door.clone();
        async move { (*admit(&door, &additional(name), None).await.unwrap().ability).clone() }
    };
    assert_eq!(ability("full").await, Ability::Full);
    assert_eq!(ability("read").await, Ability::from_scopes(["read:runs"]));
    assert_eq!(ability("none").await, Ability::from_scopes(["admin:x"]));
}

#[tokio::test]
async fn public_tokens_are_verified_as_the_contract_says() {
    let trial = Trial::new().await;
    public_tokens(&trial.door()).await;
    let kept = Kept::new(&trial, "auth_tokens", Settings::default()).await;
    public_tokens(&kept.door).await;
    kept.stop().await;
}

#[tokio::test]
async fn settings_restore_what_upstream_accepts_and_refuse_what_it_should_not() {
    let trial = Trial::new().await;
    let with = |name: &str, algorithm| {
        sign(json!({ "alg": name }), &claims("prod"), "tr_prod_root", algorithm)
    };
    let settings = Settings {
        tokens: TokenRules { lax: true },
        archived_branch_tokens: false,
        ..Settings::default()
    };
    let door = Door::new(trial.pool.clone(), settings.clone());
    let kept = Kept::new(&trial, "auth_settings", settings).await;
    for door in [&door, &kept.door] {
        for (case, bearer, wanted) in [
            ("HS384", with("HS384", Algorithm::HS384), Ok("prod")),
            ("HS512", with("HS512", Algorithm::HS512), Ok("prod")),
            ("HS512 with another's tag", with("HS512", Algorithm::HS256), Err(BAD_TOKEN)),
            ("exp missing", token_with("exp", Value::Null), Ok("prod")),
            ("exp a text", token_with("exp", json!("never")), Err(BAD_TOKEN)),
            ("expired", token_with("exp", json!(now() - 1)), Err(BAD_TOKEN)),
            ("of an archived branch", token("old", "tr_preview_root"), Err(UNKNOWN_TOKEN)),
            ("of a branch", token("feat", "tr_preview_root"), Ok("feat")),
        ] {
            let found = outcome(door, &bearer, None).await;
            assert_eq!(found.as_deref().map_err(|text| *text), wanted, "{case}");
        }
        let endless = admit(door, &token_with("exp", Value::Null), None).await.unwrap();
        assert_eq!(endless.expires_at, None);
        // Not even then longer than its key's grace.
        let mut claims = claims("prod");
        claims.as_object_mut().unwrap().remove("exp");
        let bearer = sign(json!({"alg": "HS256"}), &claims, "tr_prod_grace", Algorithm::HS256);
        assert!(admit(door, &bearer, None).await.unwrap().expires_at.is_some());
    }
    kept.stop().await;
}

async fn public_tokens(door: &Door) {
    let good = token("prod", "tr_prod_root");
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let with = |name, algorithm, key| sign(json!({ "alg": name }), &claims("prod"), key, algorithm);
    let api = "https://api.trigger.dev";
    let cases = [
        ("good", good.clone(), Ok("prod")),
        ("signed by a rotated key", token("prod", "tr_prod_grace"), Ok("prod")),
        ("signed by a key out of grace", token("prod", "tr_prod_ended"), Err(BAD_TOKEN)),
        ("signed by another environment's key", token("prod", "tr_stg_root"), Err(BAD_TOKEN)),
        ("of a branch, signed by the parent's key", token("feat", "tr_preview_root"), Ok("feat")),
        ("the same, rotated", token("feat", "tr_preview_grace"), Ok("feat")),
        ("of a branch, signed by its own key", token("feat", "tr_preview_feat"), Err(BAD_TOKEN)),
        ("of an archived branch", token("old", "tr_preview_root"), Ok("old")),
        ("of a preview root", token("preview", "tr_preview_root"), Ok("preview")),
        ("of a deleted project", token("dead", "tr_prod_dead"), Err(UNKNOWN_TOKEN)),
        ("of no environment", token("nobody", "tr_prod_root"), Err(UNKNOWN_TOKEN)),
        ("of an id with NUL", token("prod\0", "tr_prod_root"), Err(UNKNOWN_TOKEN)),
        ("of an environment without key", token("keyless", ""), Err(BAD_TOKEN)),
        ("sub missing", token_with("sub", Value::Null), Err(UNKNOWN_TOKEN)),
        ("sub no text", token_with("sub", json!(7)), Err(UNKNOWN_TOKEN)),
        ("pub missing", token_with("pub", Value::Null), Err(INVALID)),
        ("pub a text", token_with("pub", json!("true")), Err(INVALID)),
        ("expired", token_with("exp", json!(now() - 1)), Err(BAD_TOKEN)),
        ("exp now", token_with("exp", json!(now())), Err(BAD_TOKEN)),
        ("exp missing", token_with("exp", Value::Null), Err(BAD_TOKEN)),
        ("exp a text", token_with("exp", json!((now() + 60).to_string())), Err(BAD_TOKEN)),
        ("nbf past", token_with("nbf", json!(now() - 1)), Ok("prod")),
        ("nbf ahead", token_with("nbf", json!(now() + 60)), Err(BAD_TOKEN)),
        ("iat ahead", token_with("iat", json!(now() + 60)), Ok("prod")),
        ("aud in a list", token_with("aud", json!(["https://x", api])), Ok("prod")),
        ("aud not in the list", token_with("aud", json!(["https://x"])), Err(BAD_TOKEN)),
        ("aud foreign", token_with("aud", json!("https://x")), Err(BAD_TOKEN)),
        ("aud missing", token_with("aud", Value::Null), Err(BAD_TOKEN)),
        ("iss foreign", token_with("iss", json!("https://x")), Err(BAD_TOKEN)),
        ("iss missing", token_with("iss", Value::Null), Err(BAD_TOKEN)),
        ("HS384", with("HS384", Algorithm::HS384, "tr_prod_root"), Err(BAD_TOKEN)),
        ("HS512", with("HS512", Algorithm::HS512, "tr_prod_root"), Err(BAD_TOKEN)),
        ("alg none", with("none", Algorithm::HS256, "tr_prod_root"), Err(BAD_TOKEN)),
        ("signature cut", format!("{signed}.{}", &signature[..40]), Err(BAD_TOKEN)),
        ("signature missing", format!("{signed}."), Err(BAD_TOKEN)),
        ("signature not base64", format!("{signed}.***"), Err(BAD_TOKEN)),
        ("two parts", signed.to_owned(), Err(INVALID)),
        ("four parts", format!("{good}.{signature}"), Err(INVALID)),
        ("payload not base64", format!("e30.***.{signature}"), Err(INVALID)),
    ];
    for (case, bearer, wanted) in &cases {
        let found = outcome(door, bearer, None).await;
        assert_eq!(found.as_deref().map_err(|text| *text), *wanted, "{case}");
        let branched = outcome(door, bearer, Some("nope")).await;
        assert_eq!(found, branched, "{case}: the branch header must not matter");
    }
}

#[tokio::test]
async fn a_token_carries_its_scopes_columns_and_end() {
    let trial = Trial::new().await;
    let door = trial.door();
    let mut claims = claims("prod");
    claims["realtime"] = json!({"skipColumns": ["payload", "output"]});
    let bearer = sign(json!({"alg": "HS256"}), &claims, "tr_prod_root", Algorithm::HS256);
    let caller = admit(&door, &bearer, None).await.unwrap();
    assert_eq!(*caller.ability, Ability::from_scopes(["read:runs:run_x"]));
    assert_eq!(caller.skip_columns.as_deref().unwrap(), ["payload", "output"]);
    let end = UNIX_EPOCH + Duration::from_secs(claims["exp"].as_u64().unwrap());
    assert_eq!(caller.expires_at, Some(end));

    for scopes in [json!([]), json!("admin"), Value::Null] {
        let caller = admit(&door, &token_with("scopes", scopes), None).await.unwrap();
        assert_eq!(*caller.ability, Ability::from_scopes::<&str>([]));
    }
    let odd = token_with("realtime", json!({"skipColumns": "payload"}));
    assert_eq!(admit(&door, &odd, None).await.unwrap().skip_columns, None);

    // Grace ends in an hour, this token in two.
    let mut longer = claims;
    longer["exp"] = json!(now() + 7200);
    let bearer = sign(json!({"alg": "HS256"}), &longer, "tr_prod_grace", Algorithm::HS256);
    let end = admit(&door, &bearer, None).await.unwrap().expires_at.unwrap();
    assert!(end < SystemTime::now() + Duration::from_secs(3601), "outlives its key's grace");
}
