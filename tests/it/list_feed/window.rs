//! The `createdAt` window of a list (`runs-and-auth.md`, 10.2).

use std::time::SystemTime;

use runwire::feed::handle::Handle;
use runwire::runs::created::Floor;
use sqlx::PgPool;

use super::RUNS;
use crate::support::cluster::{Database, fresh_database};
use crate::support::feed::{Feed, members, told};
use crate::support::gateway::{Gateway, Shape};
use crate::support::runs::{insert_with, set_metadata};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The first millisecond of the minute in which a window of this length begins now.
fn beginning(window: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock");
    (now.as_secs() - window) / MINUTE * MINUTE * 1000
}

async fn create(pool: &PgPool, environment: &str, run: &str, tag: &str, created_ms: u64) {
    let created = format!("timestamp 'epoch' + interval '1 millisecond' * {created_ms}");
    let columns = [("runTags", &*format!("'{{{tag}}}'")), ("createdAt", &created)];
    insert_with(pool, environment, run, &columns).await;
}

/// Asks for a list of a window when two runs lie just inside and just outside of one of this length.
async fn assert_window(
    gateway: &Gateway,
    database: &Database,
    name: &str,
    query: &str,
    window: u64,
) {
    let environment = database.seeded.production;
    // Again if the minute changes meanwhile.
    for attempt in 0..3 {
        let start = beginning(window);
        let tag = format!("{name}x{attempt}");
        let (inside, outside) = (format!("{tag}in"), format!("{tag}out"));
        create(&database.pool, environment.id, &format!("run_{inside}"), &tag, start).await;
        create(&database.pool, environment.id, &format!("run_{outside}"), &tag, start - 1).await;
        let path = format!("{RUNS}?tags={tag}{query}");
        let feed = Feed::new(gateway, &path, environment.secret_key);
        let open = feed.open().await;
        if beginning(window) != start {
            continue;
        }
        assert_eq!(members(&open), [inside.as_str()], "{query}, which is {window} s");
        // What changes is measured alike.
        set_metadata(&database.pool, &format!("run_{outside}"), 1).await;
        set_metadata(&database.pool, &format!("run_{inside}"), 1).await;
        let mut live = feed.live(&open).await;
        for _ in 0..3 {
            if live.is_bare() {
                live = feed.live(&live).await;
            }
        }
        let of_inside = told(&live).iter().all(|told| told.ends_with(&format!(" {inside}")));
        assert!(of_inside && !live.is_bare(), "{query}: {}", live.text);
        return;
    }
    panic!("the minute changes all the time");
}

#[tokio::test]
async fn units_add_up_and_the_window_begins_with_a_whole_minute() {
    let database = fresh_database().await;
    let gateway = Gateway::start(&database.url, &["--created-max=60d"]).await;
    let most = 60 * DAY;
    let long = format!("{}1m", "1m".repeat(50));
    let cases = [
        ("1w", 7 * DAY),
        ("2d", 2 * DAY),
        ("3h", 3 * HOUR),
        ("3hr", 3 * HOUR),
        ("10m", 10 * MINUTE),
        ("90s", 90),
        ("0s", 0),
        ("0d", 0),
        ("007m", 7 * MINUTE),
        // In any order, each unit once.
        ("1d12h", DAY + 12 * HOUR),
        ("12h1d", DAY + 12 * HOUR),
        ("1w1d1h1m60s", 8 * DAY + HOUR + 2 * MINUTE),
        ("30m5m", 30 * MINUTE),
        ("1h2hr3h", HOUR),
        ("2hr1h", 2 * HOUR),
        ("5m1d30m", DAY + 5 * MINUTE),
        // More than the maximum.
        ("9w", most),
        ("99999999999999999999999999999w", most),
        // Not of the grammar, which is no error.
        ("yesterday", most),
        ("1%20h", most),
        ("%201h", most),
        ("1h%20", most),
        ("1H", most),
        ("-1h", most),
        ("%2B1h", most),
        ("1.5h", most),
        ("h", most),
        ("5", most),
        ("1h30", most),
        ("1min", most),
        ("2026-09-01T00:00:00Z", most),
        // Longer than 100.
        (&long, most),
    ];
    for (i, (text, window)) in cases.iter().enumerate() {
        let query = format!("&createdAt={text}");
        assert_window(&gateway, &database, &format!("c{i}"), &query, *window).await;
    }
    // Without a text it is a day, whatever the maximum.
    assert_window(&gateway, &database, "none", "", DAY).await;
    gateway.stop().await;
}

#[tokio::test]
async fn no_window_is_longer_than_a_day_unless_the_operator_says_so() {
    let database = fresh_database().await;
    let gateway = Gateway::start(&database.url, &[]).await;
    for (i, query) in ["", "&createdAt=7d", "&createdAt=never"].iter().enumerate() {
        assert_window(&gateway, &database, &format!("d{i}"), query, DAY).await;
    }
    gateway.stop().await;
    let gateway = Gateway::start(&database.url, &["--created-max=2h"]).await;
    for (i, query) in ["", "&createdAt=7d", "&createdAt=never"].iter().enumerate() {
        assert_window(&gateway, &database, &format!("e{i}"), query, 2 * HOUR).await;
    }
    assert_window(&gateway, &database, "short", "&createdAt=1h", HOUR).await;
    gateway.stop().await;
}

/// The handle as it would be had its list been opened earlier by so many minutes.
fn opened_earlier(answer: &Shape, minutes: u32) -> String {
    let mut handle = Handle::decode(answer.handle()).expect("a handle");
    let Floor(floor) = handle.floor.expect("a list's handle pins its window");
    handle.floor = Some(Floor(floor - minutes));
    handle.encode()
}

fn floor(answer: &Shape) -> Option<Floor> {
    Handle::decode(answer.handle()).expect("a handle").floor
}

#[tokio::test]
async fn the_window_is_pinned_when_the_list_is_opened_and_kept_by_polls_and_refetches() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let minutes_ago = |minutes: u64| beginning(minutes * MINUTE);
    create(pool, environment.id, "run_old", "a", minutes_ago(30)).await;
    create(pool, environment.id, "run_new", "a", minutes_ago(0)).await;
    create(pool, environment.id, "run_ancient", "a", minutes_ago(50 * 60)).await;
    let gateway = Gateway::start(&database.url, &["--hold=300ms"]).await;
    let feed = Feed::new(&gateway, &format!("{RUNS}?tags=a&createdAt=10m"), environment.secret_key);
    let open = feed.open().await;
    assert_eq!(members(&open), ["new"]);

    // A subscription that began an hour ago, by its handle.
    let earlier = opened_earlier(&open, 60);
    let ask = |handle: &str, offset: &str| {
        let query = format!("handle={handle}&offset={offset}&live=true&cursor=");
        let feed = &feed;
        async move { feed.ask(&query).await }
    };
    set_metadata(pool, "run_old", 1).await;
    let changed = ask(&earlier, open.offset()).await;
    assert_eq!(told(&changed).len(), 1, "{}", changed.text);
    assert!(told(&changed)[0].ends_with(" old"));
    assert_eq!(changed.handle(), earlier);
    let nothing = feed.live(&open).await;
    assert!(nothing.is_bare(), "it lies before this one's window: {}", nothing.text);

    // Refetches, one after another, go on with the window.
    let mut gone = ask(&earlier, "5_0").await;
    for _ in 0..2 {
        let again = feed.reopen(&gone).await;
        assert_eq!(members(&again), ["new", "old"]);
        assert_eq!(floor(&again), Handle::decode(&earlier).unwrap().floor);
        gone = ask(again.handle(), "5_0").await;
        assert_eq!(floor(&gone), floor(&again));
    }
    // Not with one that is beyond twice of what the operator allows now.
    let forged = opened_earlier(&open, 60 * 60);
    set_metadata(pool, "run_ancient", 1).await;
    create(pool, environment.id, "run_end", "a", minutes_ago(0)).await;
    let mut at = nothing;
    while at.is_bare() {
        at = feed.live(&at).await;
    }
    assert_eq!(told(&at), ["insert end"]);
    let changed = ask(&forged, open.offset()).await;
    let ancient = |answer: &Shape| told(answer).iter().any(|told| told.ends_with(" ancient"));
    assert!(changed.status == 409 || !ancient(&changed), "{}", changed.text);
    let gone = ask(&forged, "5_0").await;
    assert_eq!(members(&feed.reopen(&gone).await), ["end", "new", "old"]);
    // Nor with another list's.
    let other = Feed::new(&gateway, &format!("{RUNS}?tags=b"), environment.secret_key);
    let gone = other.ask(&format!("handle={earlier}&offset={}", open.offset())).await;
    assert_eq!(members(&other.reopen(&gone).await), [""; 0]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_run_whose_creation_lies_in_the_future_is_in_every_window() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let gateway = Gateway::start(&database.url, &[]).await;
    let feed = Feed::new(&gateway, &format!("{RUNS}?tags=a&createdAt=0s"), environment.secret_key);
    let open = feed.open().await;
    let later = beginning(0) + 10 * MINUTE * 1000;
    let create = create(pool, environment.id, "run_later", "a", later);
    let (live, ()) = tokio::join!(feed.live(&open), create);
    assert_eq!(told(&live), ["insert later"]);
    assert_eq!(members(&feed.anew().await), ["later"]);
    gateway.stop().await;
}
