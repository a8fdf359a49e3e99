//! What the door lets in, and what it says to the rest.

mod admission;
mod fairness;
mod fleet;
mod live;
mod rates;
mod sizes;
mod slow;
mod tls;

use crate::consistency::node::Node;
use crate::network::series;
use crate::support::gateway::{Shape, eventually};

/// What is in use of a limit.
async fn used(node: &Node, limit: &str) -> f64 {
    series(node, "runwire_limit_used", &format!(r#"limit="{limit}""#)).await
}

/// How many were refused at it.
async fn refused(node: &Node, limit: &str) -> f64 {
    series(node, "runwire_limit_refused_total", &format!(r#"limit="{limit}""#)).await
}

async fn until_used(node: &Node, limit: &str, wanted: f64) {
    let what = format!("{wanted} of the limit {limit} to be in use");
    eventually(&what, || async { used(node, limit).await == wanted }).await;
}

/// A refusal in the contract's form, which says when to come back.
fn assert_refused(answer: &Shape, status: u16, error: &str) {
    assert_eq!(answer.status, status, "{:.200}", answer.text);
    assert_eq!(answer.text, format!(r#"{{"error":"{error}"}}"#));
    assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
    let exposed = answer.header("access-control-expose-headers");
    assert!(exposed.starts_with("x-trigger-jwt,x-trigger-jwt-claims"), "{exposed}");
    if status == 429 || status == 503 {
        assert!(wait(answer) >= 1);
        assert!(exposed.ends_with(",retry-after"), "browsers see it: {exposed}");
    } else {
        assert_eq!(answer.header("retry-after"), "");
    }
}

fn wait(answer: &Shape) -> u64 {
    answer.header("retry-after").parse().expect("a number of seconds")
}
