//! S2s that are not the gateway's own: another Runwire, which issues tokens, and plain s2-lite, which
//! asks for none.

use std::sync::Arc;

use serde_json::json;
use slatedb::object_store::memory::InMemory;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What opens another Runwire's.
pub const SERVICE: &str = "a-service-token-of-the-tests-long-enough";

/// s2-lite's own routes on a free port, in memory, with the basin that a gateway uses.
pub struct Lite {
    /// `http://127.0.0.1:port/v1`.
    pub endpoint: String,
    task: JoinHandle<()>,
}

impl Lite {
    pub async fn start() -> Lite {
        let database = slatedb::Db::builder("", Arc::new(InMemory::new())).build().await;
        let database = database.expect("a database in memory");
        let backend = s2_lite::backend::Backend::new(database, bytesize::ByteSize::mib(64));
        let routes = s2_lite::handlers::router().with_state(backend);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serve") });
        let config = json!({ "create_stream_on_append": true, "create_stream_on_read": true });
        let basin = json!({ "basin": "trigger-realtime", "config": config });
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let request = client.post(format!("{endpoint}/basins"));
        let request = request.header("content-type", "application/json").body(basin.to_string());
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 201, "{:?}", answer.text().await);
        Lite { endpoint, task }
    }
}

impl Drop for Lite {
    fn drop(&mut self) {
        self.task.abort();
    }
}
