//! Which requests are for a feed, told without the router.

use axum::http::{Method, Request};

use super::subscribe::Route;

/// The feed's route, where its id needs no decoding.
pub fn feed_asked_for<B>(request: &Request<B>) -> Option<Route> {
    if request.method() != Method::GET {
        return None;
    }
    let path = request.uri().path().strip_prefix("/realtime/v1/")?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let plain = |id: &&str| !id.is_empty() && id.bytes().all(is_plain);
    if path == "runs" {
        return Some(Route::List);
    }
    if let Some(run) = path.strip_prefix("runs/") {
        return Some(run).filter(plain).map(|run| Route::Run(run.into()));
    }
    path.strip_prefix("batches/").filter(plain).map(|batch| Route::Batch(batch.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_gets_of_a_feed_take_it() {
        let asked = |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            feed_asked_for(&request)
        };
        let run = asked("GET", "/realtime/v1/runs/run_1?offset=-1");
        assert!(matches!(run, Some(Route::Run(id)) if &*id == "run_1"));
        let batch = asked("GET", "/realtime/v1/batches/batch_1");
        assert!(matches!(batch, Some(Route::Batch(id)) if &*id == "batch_1"));
        assert!(matches!(asked("GET", "/realtime/v1/runs?tags=a"), Some(Route::List)));
        let others =
            ["/realtime/v1/runs/", "/realtime/v1/runs/a/", "/realtime/v1/runs/%61", "/", "/runs"];
        assert!(others.iter().all(|path| asked("GET", path).is_none()));
        assert!(asked("HEAD", "/realtime/v1/runs/run_1").is_none());
        assert!(asked("OPTIONS", "/realtime/v1/runs").is_none());
    }
}
