//! Bodies that are compressed for those who accept it, and are the same for all.

use std::io::Read as _;

use flate2::read::GzDecoder;
use reqwest::RequestBuilder;
use runwire::dev::run::set_metadata;
use serde_json::json;

use super::{follow, of_run, of_tag, open, trigger};
use crate::support::cluster::fresh_database;
use crate::support::gateway::{Gateway, eventually};
use crate::support::runs::update;

struct Answer {
    coding: String,
    vary: String,
    length: usize,
    sent: Vec<u8>,
    text: String,
}

/// The answer as it is sent and as it reads. The test's client decodes nothing by itself.
async fn answer(request: RequestBuilder, accepts: Option<&str>) -> Answer {
    let request = match accepts {
        Some(accepts) => request.header("accept-encoding", accepts),
        None => request,
    };
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let header = |name| answer.headers().get(name).map_or("", |value| value.to_str().unwrap());
    let (coding, vary) = (header("content-encoding").to_owned(), header("vary").to_owned());
    let length = header("content-length").parse().unwrap();
    let sent = answer.bytes().await.unwrap().to_vec();
    let mut text = String::new();
    match coding.as_str() {
        "gzip" => drop(GzDecoder::new(&*sent).read_to_string(&mut text).unwrap()),
        "" => text = String::from_utf8(sent.clone()).unwrap(),
        other => panic!("{other}"),
    }
    Answer { coding, vary, length, sent, text }
}

#[tokio::test]
async fn complete_bodies_are_the_same_compressed_and_not() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let key = environment.secret_key;
    let gateway = Gateway::start(&database.url, &[]).await;
    // From a small one to one of many megabytes, and from what compresses well to what hardly does.
    let run = trigger(pool, &environment, None).await;
    for payload in ["'{}'", "repeat('abc ', 20000)", LARGE] {
        let from = open(&gateway, &of_run(&run), key).await;
        update(pool, &run, &format!("payload = {payload}, number = number + 1")).await;
        let path = format!("{}?offset=-1", of_run(&run));
        let opened = || gateway.get(&path, key);
        let list = format!("{}&offset=-1", of_tag());
        let listed = || gateway.get(&list, key);
        let changed = || follow(&gateway, &of_run(&run), key, &from, "live=true");
        // Once it has come, all of them give the same.
        assert!(answer(changed(), None).await.text.contains("number"));
        for request in [&opened as &dyn Fn() -> RequestBuilder, &changed, &listed] {
            let plain = answer(request(), None).await;
            assert_eq!((plain.coding.as_str(), plain.length), ("", plain.sent.len()));
            assert_eq!(plain.vary, "accept-encoding", "of what is plain for some as well");
            for accepts in ["gzip, deflate", "br;q=1.0, gzip;q=0.1"] {
                let packed = answer(request(), Some(accepts)).await;
                let expected = if plain.length > 1024 { "gzip" } else { "" };
                assert_eq!(packed.coding, expected, "{} bytes", plain.length);
                assert_eq!(packed.vary, "accept-encoding");
                assert_eq!(packed.length, packed.sent.len());
                assert!(packed.text == plain.text, "{} bytes", plain.length);
                assert!(plain.length <= 1024 || packed.length < plain.length);
            }
            for refuses in ["identity", "deflate, br", "gzip;q=0", "gzip;q=0.0, identity"] {
                let refused = answer(request(), Some(refuses)).await;
                assert!(refused.coding.is_empty() && refused.text == plain.text, "{refuses}");
            }
        }
    }
    gateway.stop().await;
}

/// Some 3 MB of digests.
const LARGE: &str = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 100000) i)";

#[tokio::test]
async fn a_crowd_is_sent_the_same_compressed_bytes() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let key = environment.secret_key;
    let gateway = Gateway::start(&database.url, &[]).await;
    let run = trigger(pool, &environment, None).await;
    let from = open(&gateway, &of_run(&run), key).await;
    let polls: Vec<_> = (0..32)
        .map(|_| {
            let poll = follow(&gateway, &of_run(&run), key, &from, "live=true");
            tokio::spawn(answer(poll, Some("gzip")))
        })
        .collect();
    eventually("the polls to be held", || async {
        let metrics = gateway.admin("/metrics").await.text;
        metrics
            .lines()
            .any(|line| line.starts_with("runwire_waited_topics") && !line.ends_with(" 0"))
    })
    .await;
    let metadata = json!({ "text": "x".repeat(100_000) }).to_string();
    set_metadata(pool, &run, &metadata).await.unwrap();
    let mut sent = Vec::new();
    for poll in polls {
        let answer = poll.await.unwrap();
        assert!(answer.coding == "gzip" && answer.text.contains("xxxx"));
        sent.push(answer.sent);
    }
    assert!(sent.windows(2).all(|two| two[0] == two[1]));
    gateway.stop().await;
}
