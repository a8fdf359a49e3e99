//! What clients' connections do to the gateway, and to each other.

mod aborts;
mod http2;
mod stalled;
mod vanished;

use std::net::SocketAddr;

use runwire::dev::Environment;

use crate::consistency::node::Node;
use crate::support::cluster::Database;
use crate::support::gateway::{API_VERSION, Shape};
use crate::support::runs::insert_run;

/// One series of a metric on the public address.
pub async fn series(node: &Node, name: &str, labels: &str) -> f64 {
    let url = format!("{}/metrics", node.admin_url);
    let client = crate::consistency::node::client();
    let text = client.get(url).send().await.expect("metrics").text().await.expect("text");
    let series = format!("{name}{{{labels}}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

pub const PUBLIC: &str = r#"listener="public""#;

/// New runs, and for each the first answer of its feed.
pub async fn opened(node: &Node, database: &Database, count: usize) -> Vec<(String, Shape)> {
    let environment = database.seeded.production;
    let mut opened = Vec::new();
    for i in 0..count {
        let run = format!("run_{i}");
        insert_run(&database.pool, environment.id, &run).await;
        let open = node.get(environment.secret_key, &run, "offset=-1").await;
        assert_eq!(open.status, 200, "{}", open.text);
        opened.push((run, open));
    }
    opened
}

/// The text of a live poll over HTTP/1.1.
pub fn live_poll(host: SocketAddr, environment: Environment, run: &str, from: &Shape) -> String {
    let (name, version) = API_VERSION;
    let (path, key) = (from.next(run), environment.secret_key);
    format!(
        "GET {path}&live=true HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n{name}: {version}\r\n\r\n"
    )
}

pub fn address(node: &Node) -> SocketAddr {
    node.url.trim_start_matches("http://").parse().expect("an address")
}
