//! Which runs a list holds (`runs-and-auth.md`, 3.2 and 10.1), and how its filter is read.

use serde_json::json;

use super::{RUNS, tagged};
use crate::support::cluster::fresh_database;
use crate::support::feed::{Feed, assert_complete, members, told};
use crate::support::gateway::{Gateway, Shape};
use crate::support::runs::{insert_run, insert_with};

#[tokio::test]
async fn no_tags_is_the_whole_environment_and_several_tags_are_all_of_them() {
    let database = fresh_database().await;
    let (pool, seeded) = (&database.pool, database.seeded);
    let environment = seeded.branch.id;
    for (run, tags) in [
        ("run_none", &[][..]),
        ("run_a", &["a"]),
        ("run_ab", &["a", "b"]),
        ("run_cba", &["c", "b", "a"]),
        ("run_upper", &["A"]),
        ("run_longer", &["ab", "a:b", " a"]),
    ] {
        tagged(pool, environment, run, tags).await;
    }
    insert_run(pool, environment, "run_null").await;
    // The same tags elsewhere.
    tagged(pool, seeded.production.id, "run_elsewhere", &["a", "b"]).await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let branch_token = crate::support::token::sign(
        &{
            let mut claims = crate::support::token::claims(environment);
            claims["scopes"] = json!(["read:runs"]);
            claims
        },
        // A branch's tokens are signed with its parent's key.
        seeded.preview.secret_key,
    );
    let everything =
        ["a", "ab", "cba", "cseedbranch00000000000001", "longer", "none", "null", "upper"];
    for (query, expected) in [
        ("", &everything[..]),
        ("?tags=", &everything),
        ("?tags=a", &["a", "ab", "cba"]),
        ("?tags=a,b", &["ab", "cba"]),
        ("?tags=b%2Ca", &["ab", "cba"]),
        ("?tags=a,a,b", &["ab", "cba"]),
        ("?tags=c,b,a", &["cba"]),
        ("?tags=A", &["upper"]),
        ("?tags=a:b", &["longer"]),
        // Not trimmed.
        ("?tags=+a", &["longer"]),
        ("?tags=%20a,ab", &["longer"]),
        ("?tags=a%20", &[]),
        ("?tags=nobody", &[]),
        ("?tags=a,nobody", &[]),
    ] {
        let answer = Feed::new(&gateway, &format!("{RUNS}{query}"), &branch_token).open().await;
        assert_complete(&answer, false);
        assert_eq!(members(&answer), expected, "{query}");
        if expected.is_empty() {
            assert!(answer.is_bare(), "{}", answer.text);
        }
    }
    // And live, each feed is told of what it holds alone.
    let pick = |path: &'static str| {
        let feed = Feed::new(&gateway, path, &branch_token);
        async move { (feed.open().await, feed) }
    };
    let (all, all_feed) = pick("/realtime/v1/runs").await;
    let (one, one_feed) = pick("/realtime/v1/runs?tags=x").await;
    let (two, two_feed) = pick("/realtime/v1/runs?tags=x,y").await;
    tagged(pool, seeded.production.id, "run_far", &["x", "y"]).await;
    insert_run(pool, environment, "run_1").await;
    tagged(pool, environment, "run_2", &["x"]).await;
    // More of the one tag than of the other, whichever is looked through.
    tagged(pool, environment, "run_3", &["y"]).await;
    tagged(pool, environment, "run_4", &["y"]).await;
    tagged(pool, environment, "run_5", &["z", "y", "x"]).await;
    let expected = [
        (all_feed, all, vec!["insert 1", "insert 2", "insert 3", "insert 4", "insert 5"]),
        (one_feed, one, vec!["insert 2", "insert 5"]),
        (two_feed, two, vec!["insert 5"]),
    ];
    for (feed, mut from, expected) in expected {
        let mut found = Vec::new();
        while found.len() < expected.len() {
            from = feed.live(&from).await;
            found.extend(told(&from));
        }
        assert_eq!(found, expected);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_tag_of_any_safe_characters_is_found_by_query_and_by_the_stream() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let tags =
        ["user:42", "with space", "it's", "snowman ☃", "{x}", "a=b&c", "100%", "NULL", "ä/ö"];
    let gateway = Gateway::start(&database.url, &["--hold=5s"]).await;
    for (i, tag) in tags.iter().enumerate() {
        let parameter: String = form_urlencoded::byte_serialize(tag.as_bytes()).collect();
        let path = format!("{RUNS}?tags={parameter}");
        let feed = Feed::new(&gateway, &path, environment.secret_key);
        let empty = feed.open().await;
        let before = members(&empty).len();
        let (run, tags) = (format!("run_t{i}"), [*tag, "other"]);
        let create = tagged(pool, environment.id, &run, &tags);
        let (live, ()) = tokio::join!(feed.live(&empty), create);
        assert_eq!(told(&live), [format!("insert t{i}")], "{tag}");
        let again = feed.anew().await;
        assert!(members(&again).contains(&format!("t{i}")), "{tag}");
        assert_eq!(members(&again).len(), before + 1, "{tag}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn unsafe_tags_are_refused_in_the_contracts_words() {
    let database = fresh_database().await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let key = database.seeded.production.secret_key;
    for (tags, quoted) in [
        ("a%22b", r#"\"a\\\"b\""#),
        ("a%5Cb", r#"\"a\\\\b\""#),
        ("a,,b", r#"\"\""#),
        (",", r#"\"\""#),
        ("a,", r#"\"\""#),
        ("ok,a%00", r#"\"a\\u0000\""#),
        ("x%0Ay", r#"\"x\\ny\""#),
        ("x%1Fy", r#"\"x\\u001fy\""#),
        ("x%7F", "\\\"x\u{7f}\\\""),
        // The first bad one alone.
        ("%09,%22", r#"\"\\t\""#),
    ] {
        for rest in ["offset=-1", "handle=x&offset=1_0&live=true"] {
            let path = format!("{RUNS}?tags={tags}&{rest}");
            let request = gateway.get(&path, key).header("origin", "https://app.example");
            let refusal = Shape::read(request.send().await.unwrap()).await;
            assert_eq!(refusal.status, 400, "{path}: {}", refusal.text);
            let expected = format!(
                r#"{{"error":"Query Error","details":[{{"code":"custom","message":"Invalid tag: {quoted}","path":["tags"]}}]}}"#
            );
            assert_eq!(refusal.text, expected);
            assert_eq!(refusal.header("content-type"), "application/json; charset=utf-8");
            assert_eq!(refusal.header("access-control-allow-origin"), "https://app.example");
        }
    }
    // Who may not come in is told so first.
    let refusal = Feed::new(&gateway, &format!("{RUNS}?tags=%22"), "tr_prod_nonsense").open().await;
    assert_eq!(refusal.status, 401);
    // The query goes before the scopes.
    let token = crate::support::token::public(database.seeded.production, &[]);
    let refusal = Feed::new(&gateway, &format!("{RUNS}?tags=%22"), &token).open().await;
    assert_eq!(refusal.status, 400);
    gateway.stop().await;
}

#[tokio::test]
async fn of_a_repeated_filter_the_last_counts_and_of_a_repeated_protocol_parameter_the_first() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    tagged(pool, environment.id, "run_a", &["fa"]).await;
    tagged(pool, environment.id, "run_b", &["fb"]).await;
    let old = r#"now() AT TIME ZONE 'utc' - interval '3 hours'"#;
    let columns = [("runTags", "'{fb}'"), ("createdAt", old)];
    insert_with(pool, environment.id, "run_old", &columns).await;
    let gateway = Gateway::start(&database.url, &["--hold=300ms"]).await;
    let ask = |query: String| {
        let gateway = &gateway;
        async move { Feed::new(gateway, RUNS, environment.secret_key).ask(&query).await }
    };
    let last = ask("tags=fa&tags=fb&offset=-1".to_owned()).await;
    assert_eq!(members(&last), ["b", "old"]);
    let last = ask("tags=%22&tags=fb&createdAt=1w&createdAt=1h&offset=-1".to_owned()).await;
    assert_eq!(members(&last), ["b"]);
    let last = ask("tags=fb&createdAt=1h&createdAt=5h&offset=-1".to_owned()).await;
    assert_eq!(members(&last), ["b", "old"]);
    let everything = ask("tags=fa&tags=&offset=-1".to_owned()).await;
    assert!(members(&everything).len() > 5, "an empty text is no filter");

    let first = ask("tags=fa&offset=-1&offset=7_0&skipColumns=payload&skipColumns=output".into());
    let first = first.await;
    let (_, row) = first.row();
    assert!(row.get("payload").is_none() && row.get("output").is_some(), "{row}");
    let (handle, offset) = (first.handle(), first.offset());
    let next = format!(
        "tags=fa&skipColumns=payload&offset={offset}&offset=7_0&handle={handle}&handle=x&live=true&live=false"
    );
    let next = ask(next).await;
    assert_complete(&next, true);
    assert!(next.is_bare(), "{}", next.text);
    // As old clients name the handle.
    let next = ask(format!("tags=fa&skipColumns=payload&offset={offset}&shape_id={handle}")).await;
    assert_complete(&next, false);
    gateway.stop().await;
}

#[tokio::test]
async fn what_would_widen_the_filter_means_nothing() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    tagged(pool, environment.id, "run_a", &["fa"]).await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let feed = Feed::new(&gateway, RUNS, environment.secret_key);
    let plain = feed.ask("tags=fa&offset=-1").await;
    let wide = "where=1%3D1&table=%22User%22&columns=id&params%5B1%5D=x&subset__limit=1&replica=full&tasks=none&log=full";
    let wide = feed.ask(&format!("tags=fa&{wide}&offset=-1")).await;
    assert_eq!(wide.text, plain.text);
    assert_eq!(members(&wide), ["a"]);
    gateway.stop().await;
}
