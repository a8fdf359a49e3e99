//! What the routes of all feeds share: who asks and what for, opening or polling, and the answer.

use std::borrow::Cow;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::header::{ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use axum::http::request::Parts;
use axum::http::{Response, Uri};
use metrics::Gauge;
use tokio::time::Instant;

use super::error::HttpError;
use super::shape::{self, ShapeQuery, ShapeRequest};
use super::{App, Kind, batches, cors, runs, sse};
use crate::auth::{Ability, Caller, Refusal, Resource};
use crate::feed::{Facts, FeedKey, Open, Outcome, Poll, Runs, View};
use crate::lease::Lease;
use crate::limits::{Admitted, LivePlace};
use crate::runs::columns::ColumnSet;

static API_VERSION: HeaderName = HeaderName::from_static("x-trigger-api-version");
/// The API version from which on clients know every status.
const CURRENT_API_VERSION: &[u8] = b"2025-07-16";
/// The longest time between two answers that a client or operator may ask for.
pub const MAX_THROTTLE: Duration = Duration::from_secs(10);

/// A request whose bearer was let in.
pub(super) struct Subscriber<'a> {
    pub caller: Caller,
    pub query: ShapeQuery<'a>,
    old_statuses: bool,
}

/// What an admitted request wants.
pub(super) enum Asked {
    Poll(Box<Poll>),
    Other(Box<(ShapeRequest, Work)>),
}

/// What is no poll.
pub(super) enum Work {
    OpenRun(Box<Open>, Arc<str>, Box<Caller>),
    OpenList(Box<Open>, Box<Caller>),
    Stream(Box<Poll>, Option<SystemTime>),
}

impl<'a> Subscriber<'a> {
    fn new(caller: Caller, head: &'a Parts) -> Self {
        let query = ShapeQuery::parse(head.uri.query().unwrap_or_default());
        Subscriber { caller, query, old_statuses: knows_old_statuses_only(&head.headers) }
    }

    /// The environment that the bearer opens.
    pub fn environment(&self) -> Arc<str> {
        Arc::clone(&self.caller.environment_id)
    }

    /// Whether the request follows a feed that it was given a handle of, rather than opening it.
    pub fn follows(&self) -> bool {
        self.query.handle.is_some() && self.query.offset.as_deref().is_some_and(|at| at != "-1")
    }

    /// Whether any of the resources may be read.
    pub fn may_read(&self, resources: &[Resource<'_>]) -> Result<(), HttpError> {
        if self.caller.ability.can("read", resources) { Ok(()) } else { Err(HttpError::Forbidden) }
    }

    /// What is to be done for a feed that the bearer may see.
    pub fn ask(self, app: &App, feed: FeedKey) -> Asked {
        let follows = self.follows();
        let columns = columns(&self.caller, &self.query);
        let shape = ShapeRequest { live: self.query.live, columns };
        let hold_until = self.query.live.then(|| hold_until(app, &self.caller));
        let throttle = self.throttle(app);
        let view = View { feed, columns, old_statuses: self.old_statuses };
        let handle = self.query.handle.map(Cow::into_owned);
        let offset = self.query.offset.as_deref().unwrap_or("-1");
        let work = match handle {
            Some(handle) if follows => {
                // What is no offset of ours lies before everything that is held, and is answered by
                // a 409.
                let after = offset.parse().unwrap_or_default();
                let handle = handle.into_boxed_str();
                let lease = self.caller.lease;
                let poll = Box::new(Poll { view, handle, after, hold_until, throttle, lease });
                if !(self.query.live && self.query.sse) {
                    return Asked::Poll(poll);
                }
                Work::Stream(poll, self.caller.expires_at)
            }
            handle => {
                let run = match view.feed.runs() {
                    Runs::One(run) => Some(Arc::clone(run)),
                    Runs::OfBatch(_) | Runs::Tagged { .. } => None,
                };
                let open = Box::new(Open { view, handle, returns: self.query.returns });
                let caller = Box::new(self.caller);
                match run {
                    Some(run) => Work::OpenRun(open, run, caller),
                    None => Work::OpenList(open, caller),
                }
            }
        };
        Asked::Other(Box::new((shape, work)))
    }

    /// The token's claim wins over the query, and the query over the environment's default.
    fn throttle(&self, app: &App) -> Duration {
        let asked = self.query.throttle.as_deref().and_then(|text| text.parse().ok());
        let asked = self.caller.throttle.or(asked.map(Duration::from_millis));
        asked.unwrap_or_else(|| app.throttle.of(&self.caller.environment_id)).min(MAX_THROTTLE)
    }
}

/// Which feed a path names.
pub(super) enum Route {
    Run(Box<str>),
    List,
    Batch(Box<str>),
}

/// The id that a path ends with. One that is no text when it is decoded is taken as it stands: either
/// way nothing has it, which is not said before it is known who asks.
pub(super) fn id_of(decoded: Result<Path<String>, PathRejection>, uri: &Uri) -> Box<str> {
    match decoded {
        Ok(Path(id)) => id.into(),
        Err(_) => uri.path().rsplit('/').next().unwrap_or_default().into(),
    }
}

/// Answers a request for a feed, which is at the door until it is known who asks.
///
/// What comes before a wait is boxed and goes with its box, so that it takes no memory while a poll
/// is held: neither its own state nor the request's headers.
pub(super) fn feed(
    app: Arc<App>,
    route: Route,
    head: Parts,
    admitted: Option<Admitted>,
) -> impl Future<Output = Response<Body>> + Send {
    let kind = match route {
        Route::Run(_) => Kind::Run,
        Route::List => Kind::List,
        Route::Batch(_) => Kind::Batch,
    };
    let reply = Reply { kind, origin: origin(&head.headers), gzip: accepts_gzip(&head.headers) };
    let asked: Pin<Box<dyn Future<Output = Result<Asked, HttpError>> + Send>> =
        match ask_at_once(&app, &route, &head) {
            Some(asked) => Box::pin(ready(asked)),
            None => Box::pin(ask(Arc::clone(&app), route, head, admitted)),
        };
    async move {
        let mut poll = match asked.await {
            Ok(Asked::Poll(poll)) => poll,
            Ok(Asked::Other(other)) => {
                let (shape, work) = *other;
                return Box::pin(reply.serve(&app, shape, work)).await;
            }
            Err(error) => return reply.refuse(&error),
        };
        let held = match poll.hold_until {
            Some(_) => match app.limits.live.enter(poll.view.feed.environment()) {
                Some(live) => Some(Held::begin(&app.metrics.of(kind).holds, live)),
                None => return reply.refuse(&HttpError::TooManyLive),
            },
            None => None,
        };
        let outcome = app.feeds.poll(&mut poll).await;
        drop(held);
        let shape = ShapeRequest { live: poll.hold_until.is_some(), columns: poll.view.columns };
        reply.tell(&app, shape, outcome).await
    }
}

/// What most requests want, past [`App::caller`]: callers that are known, and feeds that need no look-up. Nothing is waited
/// for, so nothing is kept for a wait. `None` if that is not so: then nothing has been counted either.
fn ask_at_once(app: &App, route: &Route, head: &Parts) -> Option<Result<Asked, HttpError>> {
    let run = match route {
        Route::Run(run) => Some(run),
        Route::List => None,
        Route::Batch(_) => return None,
    };
    let subscriber = Subscriber::new(app.door.admit_known(&head.headers)?, head);
    if run.is_some_and(|run| !runs::is_open_to(&subscriber, run)) {
        return None;
    }
    Some(app.count(&head.headers).and_then(|()| match run {
        Some(run) => Ok(runs::ask_run(app, subscriber, run)),
        None => runs::ask_list(app, subscriber),
    }))
}

async fn ask(
    app: Arc<App>,
    route: Route,
    head: Parts,
    admitted: Option<Admitted>,
) -> Result<Asked, HttpError> {
    let subscriber = Subscriber::new(app.caller(&head.headers).await?, &head);
    // From here on its environment's limits count.
    drop(admitted);
    match route {
        Route::Run(run) => {
            let run = run.into();
            runs::may_ask(&app, &subscriber, &run).await?;
            Ok(runs::ask_run(&app, subscriber, &run))
        }
        Route::List => runs::ask_list(&app, subscriber),
        Route::Batch(batch) => batches::ask(&app, subscriber, batch.into()).await,
    }
}

/// A copy: the value itself would keep the buffer that the request was read into.
fn origin(headers: &HeaderMap) -> Option<Box<HeaderValue>> {
    HeaderValue::from_bytes(headers.get(ORIGIN)?.as_bytes()).ok().map(Box::new)
}

/// How answers go back to this client, whatever they are.
struct Reply {
    kind: Kind,
    gzip: bool,
    origin: Option<Box<HeaderValue>>,
}

impl Reply {
    fn refuse(self, error: &HttpError) -> Response<Body> {
        let mut response = error.response();
        cors::on_refusal(self.origin.map(|origin| *origin), response.headers_mut());
        response
    }

    /// Does what is no poll and answers.
    async fn serve(self, app: &Arc<App>, shape: ShapeRequest, work: Work) -> Response<Body> {
        let outcome = match work {
            Work::OpenRun(open, run, caller) => {
                let opens = |facts: &Facts| may_read_run(&caller.ability, &run, facts);
                let opened = Box::pin(app.feeds.open_run(*open, opens)).await;
                still_good(&caller).map(|()| opened)
            }
            Work::OpenList(open, caller) => {
                let opened = Box::pin(app.feeds.open_list(*open)).await;
                still_good(&caller).map(|()| opened)
            }
            Work::Stream(poll, expires_at) => {
                let Some(live) = app.limits.live.enter(poll.view.feed.environment()) else {
                    return self.refuse(&HttpError::TooManyLive);
                };
                let (app, metrics) = (Arc::clone(app), app.metrics.of(self.kind).clone());
                match Box::pin(sse::stream(app, shape, *poll, expires_at, metrics, live)).await {
                    Ok(response) => return response,
                    Err(outcome) => Ok(outcome),
                }
            }
        };
        match outcome {
            Ok(outcome) => self.tell(app, shape, outcome).await,
            Err(error) => self.refuse(&error),
        }
    }

    async fn tell(self, app: &App, shape: ShapeRequest, outcome: Outcome) -> Response<Body> {
        match outcome {
            Outcome::Answer(answer) => {
                if let Some(committed_at) = answer.committed_at {
                    app.metrics.of(self.kind).delivered(committed_at);
                }
                let gzip = if self.gzip { Box::pin(answer.body.gzip()).await } else { None };
                shape::answer(shape, answer, gzip)
            }
            Outcome::MustRefetch(handle) => shape::must_refetch(handle),
            Outcome::NotFound => self.refuse(&HttpError::NotFound { retry: false }),
            Outcome::Forbidden => self.refuse(&HttpError::Forbidden),
            Outcome::Unavailable => self.refuse(&HttpError::Unavailable),
            Outcome::Over(lease) => self.refuse(&over(&lease)),
        }
    }
}

/// An opening may have waited for longer than its credential lasted.
fn still_good(caller: &Caller) -> Result<(), HttpError> {
    if caller.lease.over().is_some() {
        return Err(over(&caller.lease));
    }
    match caller.expires_at {
        Some(end) if end <= SystemTime::now() => Err(HttpError::Refused(caller.once_expired)),
        _ => Ok(()),
    }
}

/// What the credential is told now that opened this. One that merely means something else asks anew.
fn over(lease: &Lease) -> HttpError {
    Refusal::of(lease).map_or(HttpError::Unavailable, HttpError::Refused)
}

/// `runs-and-auth.md`, 13.1: a run may be named by itself, its task, its tags or its batch.
pub(super) fn may_read_run(ability: &Ability, friendly_id: &str, facts: &Facts) -> bool {
    let mut resources =
        vec![Resource::one("runs", friendly_id), Resource::one("tasks", &facts.task)];
    resources.extend(facts.tags.iter().map(|tag| Resource::one("tags", tag)));
    resources.extend(facts.batch.as_deref().map(|batch| Resource::one("batch", batch)));
    ability.can("read", &resources)
}

/// The token's claim wins over the query, also when it is empty.
fn columns(caller: &Caller, query: &ShapeQuery<'_>) -> ColumnSet {
    match (&caller.skip_columns, &query.skip_columns) {
        (Some(claim), _) => ColumnSet::without(claim.iter().map(AsRef::as_ref)),
        (None, Some(list)) => ColumnSet::without(list.split(',')),
        (None, None) => ColumnSet::EXPOSED,
    }
}

fn knows_old_statuses_only(headers: &HeaderMap) -> bool {
    headers.get(&API_VERSION).is_none_or(|v| v.as_bytes() != CURRENT_API_VERSION)
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let named = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    named.flat_map(|value| value.split(',')).any(|coding| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = quality.trim().strip_prefix(['q', 'Q']).and_then(|q| q.strip_prefix('='));
        let refused = weight.is_some_and(|weight| weight.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

/// The hold, spread by ±15 % so that polls do not end together, and never beyond the token's life.
fn hold_until(app: &App, caller: &Caller) -> Instant {
    let hold = app.hold.mul_f64(rand::random_range(0.85..1.15));
    let left = caller.expires_at.map_or(Duration::MAX, |expiry| {
        expiry.duration_since(SystemTime::now()).unwrap_or_default()
    });
    Instant::now() + hold.min(left)
}

/// Counts a held poll for as long as it lives, however it ends.
pub(super) struct Held {
    holds: Gauge,
    _live: LivePlace,
}

impl Held {
    pub fn begin(holds: &Gauge, live: LivePlace) -> Self {
        holds.increment(1.0);
        Held { holds: holds.clone(), _live: live }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holds.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_those_who_name_it_and_do_not_refuse_it() {
        let accepts = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(text));
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip, deflate") && accepts("br;q=1.0, GZIP;q=0.5"));
        assert!(
            !accepts("gzip;q=0")
                && !accepts("gzip ; Q=0.000")
                && !accepts("deflate, br")
                && !accepts("")
        );
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
