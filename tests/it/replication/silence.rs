//! A connection that brings nothing, although the server's log grows.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runwire::dev::{Options, Postgres};
use runwire::postgres::Lsn;
use runwire::replication::SlotKind;
use runwire::replication::change::Event;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::held::sessions;
use crate::support::cluster::{database_in, fresh_database, shared};
use crate::support::gateway::eventually;
use crate::support::runs::set_metadata;
use crate::support::stream::{Stream, resets, settings, transactions};

#[tokio::test]
async fn a_silent_walsender_that_lives_is_waited_for() {
    let database = fresh_database().await;
    let pool = &database.pool;
    let mut settings = settings(&database.url, "silence_alive");
    settings.silence = Duration::from_millis(300);
    let stream = Stream::start(settings).await;
    stream.marks.saw_server_at(Lsn(u64::MAX));
    let pid: i32 = sqlx::query_scalar(
        "SELECT active_pid FROM pg_replication_slots WHERE database = current_database()",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    // As one that decodes a large transaction of tables that are not published.
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    set_metadata(pool, database.seeded.run, 1).await;
    let before = sessions(pool).await;
    eventually("some looks at the slot", || async { sessions(pool).await > before + 3 }).await;
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    stream.until("the change", |events| transactions(events).count() == 1).await;
    stream.look(|events| assert_eq!(resets(events).len(), 1, "the stream was given up"));
    stream.stop().await;
}

/// A way to the server on which replication connections can be cut off on the server's side alone.
async fn detour(port: u16) -> (u16, Arc<Notify>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let cut = Arc::new(Notify::new());
    let cut_here = Arc::clone(&cut);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let cut = Arc::clone(&cut_here);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let mut start = vec![0; 8_192];
                let length = client.read(&mut start).await.unwrap();
                server.write_all(&start[..length]).await.unwrap();
                let replicates = start.windows(11).any(|word| word == b"replication");
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => return,
                    () = cut.notified(), if replicates => drop(server),
                }
                // What the client still sends goes nowhere, and nothing comes back.
                while client.read(&mut start).await.is_ok_and(|length| length > 0) {}
            });
        }
    });
    (address.port(), cut)
}

#[tokio::test]
async fn a_connection_that_only_we_believe_in_is_given_up() {
    let postgres = shared().await;
    let database = database_in(postgres).await;
    let (port, cut) = detour(postgres.port()).await;
    let url = database.url.replace(&postgres.port().to_string(), &port.to_string());
    let mut settings = settings(&url, "silence_dead");
    settings.silence = Duration::from_millis(300);
    settings.slot_kind = SlotKind::Permanent;
    let stream = Stream::start(settings).await;
    stream.marks.saw_server_at(Lsn(u64::MAX));
    cut.notify_one();
    set_metadata(&database.pool, database.seeded.run, 1).await;
    stream.until("the change", |events| transactions(events).count() == 1).await;
    stream.stop().await;
}

const COMMITS: usize = 150;

#[tokio::test]
async fn a_busy_consumer_does_not_cost_the_connection() {
    let settings_of_server = vec![("wal_sender_timeout".to_owned(), "1s".to_owned())];
    let options = Options { settings: settings_of_server, ..Options::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let database = database_in(&postgres).await;
    let settings = settings(&database.url, "silence_busy");
    let stream = Stream::start_with(settings, move |event| {
        if matches!(event, Event::Tx(_)) {
            // Work, as far as the thread can tell.
            std::thread::sleep(Duration::from_millis(20));
        }
    })
    .await;
    // Much faster than they are taken in: that lasts for three times as long as the server waits.
    for version in 1..=COMMITS as i64 {
        set_metadata(&database.pool, database.seeded.run, version).await;
    }
    stream.until("every change", |events| transactions(events).count() == COMMITS).await;
    stream.look(|events| assert_eq!(resets(events).len(), 1, "the connection was lost"));
    stream.stop().await;
    database.pool.close().await;
}
