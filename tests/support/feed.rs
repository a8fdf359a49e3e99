//! A list's or a batch's feed, asked for as clients of today do.

use super::gateway::{Gateway, Shape};

/// A feed of a gateway, by its path and its own parameters.
pub struct Feed<'a> {
    gateway: &'a Gateway,
    path: String,
    token: String,
}

impl<'a> Feed<'a> {
    /// The feed of a path such as `/realtime/v1/runs?tags=a`.
    pub fn new(gateway: &'a Gateway, path: &str, token: &str) -> Feed<'a> {
        let separator = if path.contains('?') { '&' } else { '?' };
        Feed { gateway, path: format!("{path}{separator}"), token: token.to_owned() }
    }

    /// One request with these further parameters.
    pub async fn ask(&self, more: &str) -> Shape {
        let request = self.gateway.get(&format!("{}{more}", self.path), &self.token);
        Shape::read(request.send().await.expect("an answer")).await
    }

    /// Opens it.
    pub async fn open(&self) -> Shape {
        self.ask("log=full&offset=-1").await
    }

    /// Opens it as a client that came to grief before: what was read for others does not serve it.
    pub async fn anew(&self) -> Shape {
        self.ask("expired_handle=x&log=full&offset=-1").await
    }

    /// Goes on from an answer, holding the poll when nothing is new.
    pub async fn live(&self, from: &Shape) -> Shape {
        self.ask(&format!("{}&cursor=&live=true", place(from))).await
    }

    /// Goes on from an answer, with no hold.
    pub async fn catch_up(&self, from: &Shape) -> Shape {
        self.ask(&place(from)).await
    }

    /// Starts again as a 409 said.
    pub async fn reopen(&self, gone: &Shape) -> Shape {
        assert_eq!(gone.status, 409, "{}", gone.text);
        self.ask(&format!("handle={}&log=full&offset=-1", gone.handle())).await
    }
}

/// The parameters of the request that goes on from an answer.
pub fn place(from: &Shape) -> String {
    format!("handle={}&log=full&offset={}", from.handle(), from.offset())
}

/// The row messages of an answer in a short form, `insert a` for a run of internal id `a`.
pub fn told(answer: &Shape) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let rows = answer.rows().into_iter();
    rows.map(|(operation, row)| format!("{operation} {}", row["id"].as_str().expect("an id")))
        .collect()
}

/// The internal ids of an opening answer's rows, sorted.
pub fn members(answer: &Shape) -> Vec<String> {
    let mut members: Vec<String> = told(answer)
        .iter()
        .map(|told| told.strip_prefix("insert ").expect("only inserts open a feed").to_owned())
        .collect();
    members.sort();
    members
}

/// Checks the headers of an answer that is up-to-date.
pub fn assert_complete(answer: &Shape, live: bool) {
    assert_headers(answer, live);
    assert!(answer.headers.contains_key("electric-up-to-date"), "{:?}", answer.headers);
    assert!(answer.headers.contains_key("electric-chunk-up-to-date"));
    let last = answer.messages().pop().expect("a message");
    assert_eq!(last.to_string(), r#"{"headers":{"control":"up-to-date"}}"#);
}

/// Checks the headers of a part of a list that is not its last.
pub fn assert_continued(answer: &Shape) {
    assert_headers(answer, false);
    assert!(!answer.headers.contains_key("electric-up-to-date"), "{:?}", answer.headers);
    assert!(!answer.headers.contains_key("electric-chunk-up-to-date"));
    let control = answer.messages().into_iter().find(|message| message.get("key").is_none());
    assert_eq!(control, None);
}

fn assert_headers(answer: &Shape, live: bool) {
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("access-control-expose-headers"), "*");
    for (modern, legacy) in [
        ("electric-handle", "electric-shape-id"),
        ("electric-offset", "electric-chunk-last-offset"),
    ] {
        assert!(!answer.header(modern).is_empty(), "{modern}");
        assert_eq!(answer.header(modern), answer.header(legacy));
        assert_eq!(answer.header(modern), answer.header(&format!("x-{legacy}")));
    }
    assert!(answer.handle().len() <= 200, "{}", answer.handle());
    for (name, expected) in [
        ("electric-cursor", live),
        ("electric-next-cursor", live),
        ("electric-schema", !live),
        ("x-electric-schema", !live),
    ] {
        assert_eq!(answer.headers.contains_key(name), expected, "{name}");
    }
}
