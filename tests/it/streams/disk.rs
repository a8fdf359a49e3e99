//! A disk without room: appends are told, what is kept is kept, run feeds go on, and it heals by itself.

use std::fs::File;

use serde_json::json;

use crate::support::cluster::fresh_database;
use crate::support::gateway::{PATIENCE, eventually};
use crate::support::npm::Target;
use crate::support::program::Serving;
use crate::support::runs::set_metadata;
use crate::support::streams::{SOON, Stand, order, records, run, scratch, task};

/// The free space appends must leave here is less than there is by this much, at most, in bytes.
const AROUND: u64 = 1 << 30;

#[tokio::test]
async fn a_disk_that_takes_no_more_fails_appends_alone_until_it_does() {
    let (database, data) = (fresh_database().await, scratch());
    let directory = format!("--data-dir={}", data.0.display());
    let key = database.seeded.production.secret_key;
    let of = run(&database).await;
    let gateway = Serving::start_limitable(&database.url, &[&directory]).await;
    gateway.ready().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/realtime/v1/streams/{of}", gateway.url);
    let append = async |chunk: usize| {
        let request = client.post(format!("{url}/self/ai/append")).bearer_auth(key);
        let request = request.header("x-part-id", "p").body(chunk.to_string());
        request.send().await.expect("an answer").status().as_u16()
    };
    let target = Target { base_url: gateway.url.clone(), access_token: key.to_owned() };
    let mut writer = task("sdk-4.8.3", &target, &of).await;
    order(&mut writer, json!({ "order": "open", "key": "open" })).await;
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 0 }] })).await;
    for chunk in 0..10 {
        assert_eq!(append(chunk).await, 200);
    }
    gateway.limit_files(Some(0)).await;
    // It is tried again for a moment, and then the store is closed; all of them are told in time.
    for _ in 0..4 {
        let refused = tokio::time::timeout(SOON, append(10)).await.expect("an answer in time");
        assert_eq!(refused, 503);
    }
    // Run feeds know nothing of it.
    let feed = format!("/realtime/v1/runs/{}", database.seeded.run);
    let open = gateway.get(&feed, key).send().await.unwrap();
    let header = |name: &str| open.headers()[name].to_str().unwrap().to_owned();
    let (handle, offset) = (header("electric-handle"), header("electric-offset"));
    let path = format!("{feed}?handle={handle}&offset={offset}&live=true");
    let (live, ()) = futures_util::join!(gateway.get(&path, key).send(), async {
        set_metadata(&database.pool, database.seeded.run, 7).await;
    });
    let live = live.unwrap();
    assert_eq!(live.status(), 200);
    assert!(live.text().await.unwrap().contains("metadata"), "a change");
    // A writer that cannot do without it is told as well.
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 1 }] })).await;
    writer.tell(&json!({ "order": "close" })).await;
    let said = writer.next(SOON).await.expect("a word");
    assert_eq!(said["type"], "error", "{said}");
    assert!(gateway.is_ready().await);

    gateway.limit_files(None).await;
    eventually("appends to be taken again", || async { append(11).await == 200 }).await;
    let read = async |stream: &str| {
        let request = client.get(format!("{url}/{stream}")).bearer_auth(key);
        let answer = request.header("timeout-seconds", "0").send().await.unwrap();
        records(&answer.text().await.unwrap())
    };
    let mut bodies = read("ai").await.into_iter();
    for chunk in 0..10 {
        let (number, body) = bodies.next().expect("an acknowledged chunk");
        assert_eq!((number, body), (chunk, format!(r#"{{"data":"{chunk}","id":"p"}}"#)));
    }
    assert_eq!(bodies.next_back().unwrap().1, r#"{"data":"11","id":"p"}"#);
    assert!(read("open").await[0].1.starts_with(r#"{"data":{"n":0}"#));
    gateway.stop().await;
}

#[tokio::test]
async fn below_the_mark_appends_are_refused_and_all_is_read() {
    let disk = nix::sys::statvfs::statvfs(&std::env::temp_dir()).expect("a disk");
    let free = disk.blocks_available() * disk.fragment_size();
    let around = AROUND.min(free / 4);
    let least = format!("--stream-min-free={}B", free - around);
    let stand = Stand::start(&[&least]).await;
    let run = stand.run().await;
    let path = format!("/realtime/v1/streams/{run}/self/ai/append");
    let append = async || {
        let request = stand.gateway.request("POST", &path).bearer_auth(stand.key());
        let answer = request.header("x-part-id", "p").body("y").send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    };
    stand.append(&run, "ai", "x").await;
    let mut writer = stand.task("sdk-4.8.3", &run).await;
    order(&mut writer, json!({ "order": "open", "key": "open" })).await;
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 0 }] })).await;
    let reads = async |stream: &str| records(&stand.read(&run, stream, None, 0).await).len();
    eventually("the session's chunk", async || reads("open").await == 1).await;

    let file = stand._data.0.join("other");
    let other = File::create(&file).expect("a file");
    let taken = i64::try_from(2 * around).expect("a length");
    nix::fcntl::posix_fallocate(&other, 0, taken).expect("room for it");
    eventually("the mark to be seen", async || append().await.0 == 503).await;
    let (status, text) = append().await;
    assert_eq!(status, 503);
    assert!(text.contains("RUNWIRE_STREAM_MIN_FREE"), "{text}");
    assert!(stand.gateway.admin("/metrics").await.text.contains(r#"{limit="stream-disk"}"#));
    // The session was broken off, and no other is let in.
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 1 }] })).await;
    writer.tell(&json!({ "order": "close" })).await;
    let said = writer.next(SOON).await.expect("a word");
    assert_eq!(said["type"], "error", "{said}");
    assert!(said.to_string().contains("full"), "{said}");
    assert!(reads("ai").await >= 1);
    assert_eq!(reads("open").await, 1);

    drop(other);
    std::fs::remove_file(&file).expect("it is there");
    eventually("room to be seen", async || append().await.0 == 200).await;
    let mut writer = stand.task("sdk-4.8.3", &run).await;
    order(&mut writer, json!({ "order": "pipe", "key": "open", "count": 3 })).await;
    assert_eq!(reads("open").await, 4);
    tokio::time::timeout(PATIENCE, stand.gateway.stop()).await.expect("an end");
}
