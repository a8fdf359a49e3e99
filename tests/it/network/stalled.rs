//! Clients that ask and do not read.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use super::vanished::queues;
use super::{PUBLIC, address, live_poll, opened, series};
use crate::consistency::node::{Kind, Node};
use crate::support::cluster::fresh_database;
use crate::support::gateway::eventually;
use crate::support::runs::{set_metadata, update};

const STALLED: usize = 50;
/// The size of a change that each of them is sent. It fits into no socket.
const LARGE: usize = 1 << 20;
/// What the kernel may hold for one of them. 64 KiB are asked for, of which Linux makes twice that.
const KERNEL: u64 = 160 << 10;

async fn connect_with_little_room(to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(to).await.expect("connect")
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

#[tokio::test]
async fn clients_that_do_not_read_cost_the_others_nothing_and_are_cut_and_counted() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let arguments = ["--hold=60s", "--write-timeout=15s"];
    let mut node = Node::start(Kind::Binary, &database.url, &arguments).await;
    let opened = opened(&node, &database, 2).await;
    let (large, open) = &opened[0];
    let mut sockets = Vec::new();
    for _ in 0..STALLED {
        let mut socket = connect_with_little_room(address(&node)).await;
        let text = live_poll(address(&node), environment, large, open);
        socket.write_all(text.as_bytes()).await.expect("ask");
        sockets.push(socket);
    }
    eventually("the polls to be held", || async {
        node.metric("runwire_holds").await == STALLED as f64
    })
    .await;
    let before = resident_bytes(node.process().id());
    update(&database.pool, large, &format!("output = repeat('x', {LARGE})")).await;
    let stalled = || series(&node, "runwire_sockets_stalled", PUBLIC);
    eventually("all to be seen to stall", || async { stalled().await == STALLED as f64 }).await;

    // They share one body: what they take is far from what each was sent.
    for socket in &sockets {
        let peer = socket.local_addr().expect("one");
        eventually("its queue to be seen", || async {
            let Some((queued, _)) = queues(address(&node), peer) else { return false };
            assert!(queued > 0 && queued <= KERNEL, "{queued} bytes wait in the kernel");
            true
        })
        .await;
    }
    // Others hear of their changes meanwhile.
    let (other, open) = &opened[1];
    let mut seen = open.clone();
    for version in 0..20 {
        let key = environment.secret_key;
        let poll = node.next(key, other, &seen, "&live=true");
        let (answer, ()) = tokio::join!(poll, set_metadata(&database.pool, other, version));
        assert_eq!(answer.row().1["metadata"], format!(r#"{{"v":{version}}}"#));
        seen = answer;
    }
    assert_eq!(stalled().await, STALLED as f64, "the others were served while these stalled");

    let cut = r#"listener="public",why="stalled""#;
    eventually("all to be cut", || async {
        series(&node, "runwire_sockets_cut_total", cut).await == STALLED as f64
            && stalled().await == 0.0
    })
    .await;
    for socket in &sockets {
        let peer = socket.local_addr().expect("one");
        assert_eq!(queues(address(&node), peer), None, "the kernel keeps nothing for it");
    }
    let grown = resident_bytes(node.process().id()).saturating_sub(before);
    assert!(grown < (STALLED * LARGE / 2) as u64, "{grown} bytes more");
}
