//! `GET /realtime/v1/runs/{runId}` and `GET /realtime/v1/runs` (`runs-and-auth.md`, 2).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::Response;

use super::App;
use super::error::HttpError;
use super::subscribe::{Asked, Route, Subscriber, feed, id_of, may_read_run};
use crate::auth::Resource;
use crate::feed::{Facts, FeedKey, Runs};
use crate::runs::created::window;

/// A run's feed: the whole row, or what came after the client's offset.
pub async fn run(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response<Body> {
    let id = id_of(id, request.uri());
    feed(app, Route::Run(id), request.into_parts().0, None).await
}

/// The feed of an environment's runs, all or those that carry all of some tags.
pub async fn list(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    feed(app, Route::List, request.into_parts().0, None).await
}

/// Whether a run may be asked for as its scopes alone tell. An opening is looked at once it is known
/// what the run carries.
pub(super) fn is_open_to(who: &Subscriber<'_>, run: &str) -> bool {
    !who.follows() || who.may_read(&[Resource::one("runs", run)]).is_ok()
}

/// Who holds a handle has been told that the run exists; what the scopes say of it is asked anew.
pub(super) async fn may_ask(
    app: &App,
    who: &Subscriber<'_>,
    run: &Arc<str>,
) -> Result<(), HttpError> {
    if is_open_to(who, run) {
        return Ok(());
    }
    let opens = |facts: &Facts| may_read_run(&who.caller.ability, run, facts);
    match app.feeds.may_follow(&who.environment(), run, opens).await {
        Ok(Some(true)) => Ok(()),
        Ok(Some(false)) => Err(HttpError::Forbidden),
        Ok(None) => Err(HttpError::NotFound { retry: false }),
        Err(_) => Err(HttpError::Unavailable),
    }
}

pub(super) fn ask_run(app: &App, who: Subscriber<'_>, run: &str) -> Asked {
    let asked = &app.feeds.asked;
    let feed = asked.run(&who.caller.environment_id, run).unwrap_or_else(|| {
        let feed = FeedKey::run(who.environment(), run.into());
        asked.keep("", &feed);
        feed
    });
    who.ask(app, feed)
}

pub(super) fn ask_list(app: &App, subscriber: Subscriber<'_>) -> Result<Asked, HttpError> {
    let words = subscriber.query.tags.as_deref().unwrap_or_default();
    let window = window(subscriber.query.created_at.as_deref(), app.created_max);
    let asked = &app.feeds.asked;
    let known = asked.list(&subscriber.caller.environment_id, words, window);
    let feed = match &known {
        Some(feed) => feed.clone(),
        None => {
            let runs = Runs::Tagged { tags: tags(words)?, window };
            FeedKey::new(subscriber.environment(), runs)
        }
    };
    let mut resources = vec![Resource::all("runs"), Resource::all("tags")];
    if let Runs::Tagged { tags, .. } = feed.runs() {
        resources.extend(tags.iter().map(|tag| Resource::one("tags", tag)));
    }
    subscriber.may_read(&resources)?;
    if known.is_none() {
        asked.keep(words, &feed);
    }
    Ok(subscriber.ask(app, feed))
}

/// The tags of a request, each once, in an order of their own (`runs-and-auth.md`, 3.2).
fn tags(list: &str) -> Result<Arc<[Box<str>]>, HttpError> {
    if list.is_empty() {
        return Ok(Arc::default());
    }
    let unsafe_in = |c: char| c <= '\u{1f}' || matches!(c, '\u{7f}' | '\\' | '"');
    if let Some(bad) = list.split(',').find(|tag| tag.is_empty() || tag.contains(unsafe_in)) {
        return Err(HttpError::InvalidTag(bad.to_owned()));
    }
    let mut tags: Vec<Box<str>> = list.split(',').map(Box::from).collect();
    tags.sort_unstable();
    tags.dedup();
    Ok(tags.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_split_at_commas_and_unsafe_ones_refused() {
        let read = |list| tags(list).map(|tags| tags.join("|"));
        assert_eq!(read("").ok().as_deref(), Some(""));
        assert_eq!(read("b,a b,b,ü:'1").ok().as_deref(), Some("a b|b|ü:'1"));
        for (list, bad) in
            [("a,,b", ""), (",", ""), ("a,b\"c", "b\"c"), ("x\\,y\"", "x\\"), ("\u{7f}", "\u{7f}")]
        {
            assert!(matches!(tags(list), Err(HttpError::InvalidTag(tag)) if tag == bad), "{list}");
        }
    }
}
