//! Clients that vanish without a word, as behind a cable that is pulled.

use std::net::{IpAddr, SocketAddr};

use socket2::{SockFilter, SockRef};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{address, live_poll, opened, series};
use crate::consistency::node::{Kind, Node};
use crate::support::cluster::fresh_database;
use crate::support::gateway::eventually;
use crate::support::runs::set_metadata;

/// What waits in the kernel at `server`'s end of a connection: bytes not acknowledged, bytes not read.
/// `None` when there is no such end any more, and sometimes while others come and go: the kernel's table
/// is not read at one moment.
pub fn queues(server: SocketAddr, client: SocketAddr) -> Option<(u64, u64)> {
    let hex = |address: SocketAddr| {
        let IpAddr::V4(ip) = address.ip() else { panic!("not IPv4: {address}") };
        format!("{:08X}:{:04X}", u32::from_le_bytes(ip.octets()), address.port())
    };
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let ends = format!("{} {}", hex(server), hex(client));
    let line = table.lines().find(|line| line.contains(&ends))?;
    let queues = line.split_ascii_whitespace().nth(4).expect("a column of queues");
    let (sent, received) = queues.split_once(':').expect("two queues");
    let bytes = |text| u64::from_str_radix(text, 16).expect("a number");
    Some((bytes(sent), bytes(received)))
}

/// From now on nothing that is sent to this socket reaches it; it acknowledges nothing.
fn deafen(stream: &TcpStream) {
    // One instruction of the classic packet filter: return 0, keep no byte.
    let drop_all = [SockFilter::new(0x06, 0, 0, 0)];
    SockRef::from(stream).attach_filter(&drop_all).expect("a filter");
}

#[tokio::test]
async fn those_that_vanish_while_a_poll_is_held_or_answered_lose_their_places() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let arguments = ["--hold=600s", "--write-timeout=3s"];
    let node = Node::start(Kind::Binary, &database.url, &arguments).await;
    let opened = opened(&node, &database, 2).await;
    let mut streams = Vec::new();
    for i in 0..20 {
        let (run, open) = &opened[i % 2];
        let mut stream = TcpStream::connect(address(&node)).await.expect("connect");
        let text = live_poll(address(&node), environment, run, open);
        stream.write_all(text.as_bytes()).await.expect("ask");
        streams.push(stream);
    }
    eventually("the polls to be held", || async { node.metric("runwire_holds").await == 20.0 })
        .await;
    streams.iter().for_each(deafen);
    // Half of them are answered into the void.
    set_metadata(&database.pool, &opened[0].0, 1).await;
    let dead = r#"listener="public",why="dead""#;
    eventually("all to be found dead", || async {
        series(&node, "runwire_sockets_cut_total", dead).await == 20.0
    })
    .await;
    eventually("their places to be free", || async {
        node.metric("runwire_holds").await == 0.0
            && node.metric("runwire_waited_topics").await == 0.0
    })
    .await;
}
