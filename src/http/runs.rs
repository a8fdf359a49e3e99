//! `GET /realtime/v1/runs/{runId}` (`runs-and-auth.md`, 2).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::Response;
use axum::http::header::{HeaderMap, HeaderValue, ORIGIN};
use axum::http::request::Parts;
use metrics::Gauge;
use tokio::time::Instant;

use super::error::HttpError;
use super::shape::{self, ShapeQuery, ShapeRequest};
use super::{App, cors};
use crate::auth::{Ability, Caller, Resource};
use crate::feed::{Facts, Open, Outcome, Poll, RunKey};
use crate::runs::columns::ColumnSet;

/// The API version from which on clients know every status.
const CURRENT_API_VERSION: &[u8] = b"2025-07-16";

/// A run's feed: the whole row, or what came after the client's offset.
pub async fn run(
    State(app): State<Arc<App>>,
    Path(run_id): Path<String>,
    request: Request,
) -> Response<Body> {
    // What comes before a wait is boxed, so that it takes no memory while a poll is held: neither its
    // own state nor the request's headers and buffers.
    let (head, _) = request.into_parts();
    let Admitted { shape, work, origin } =
        match Box::pin(admit(Arc::clone(&app), run_id, head)).await {
            Ok(admitted) => admitted,
            Err(response) => return *response,
        };
    let outcome = match work {
        Work::Open { open, ability } => {
            let friendly_id = Arc::clone(&open.run.friendly_id);
            let opens = |facts: &Facts| may_read(&ability, &friendly_id, facts);
            Box::pin(app.runs.open(open, opens)).await
        }
        Work::Poll(poll) => {
            let held = poll.hold_until.map(|_| Held::begin(&app.metrics.holds));
            let outcome = app.runs.poll(poll).await;
            drop(held);
            outcome
        }
    };
    finish(&app, shape, outcome, origin)
}

struct Admitted {
    shape: ShapeRequest,
    work: Work,
    origin: Option<HeaderValue>,
}

enum Work {
    Open { open: Open, ability: Arc<Ability> },
    Poll(Poll),
}

/// Everything before the wait: who asks, for what, and whether they may.
async fn admit(
    app: Arc<App>,
    run_id: String,
    head: Parts,
) -> Result<Admitted, Box<Response<Body>>> {
    let origin = head.headers.get(ORIGIN).cloned();
    match try_admit(&app, run_id, &head).await {
        Ok((shape, work)) => Ok(Admitted { shape, work, origin }),
        Err(error) => Err(Box::new(refuse(&error, origin))),
    }
}

async fn try_admit(
    app: &App,
    run_id: String,
    head: &Parts,
) -> Result<(ShapeRequest, Work), HttpError> {
    let headers = &head.headers;
    let caller = app.door.admit(headers).await?;
    let query = ShapeQuery::parse(head.uri.query().unwrap_or_default());
    let columns = columns(&caller, &query);
    let shape = ShapeRequest { live: query.live, columns };
    let old_statuses = knows_old_statuses_only(headers);
    let run =
        RunKey { environment: Arc::clone(&caller.environment_id), friendly_id: run_id.into() };
    let offset = query.offset.as_deref().unwrap_or("-1");
    let handle = query.handle.as_deref().map(str::to_owned);
    let Some(handle) = handle.filter(|_| offset != "-1") else {
        let handle = query.handle.map(|handle| handle.into_owned());
        let open = Open { run, columns, old_statuses, handle };
        return Ok((shape, Work::Open { open, ability: Arc::clone(&caller.ability) }));
    };
    may_follow(app, &caller, &run).await?;
    let poll = Poll {
        run,
        columns,
        old_statuses,
        handle,
        // What is no offset of ours lies before everything that is held, and is answered by a 409.
        after: offset.parse().unwrap_or_default(),
        hold_until: query.live.then(|| hold_until(app, &caller)),
    };
    Ok((shape, Work::Poll(poll)))
}

/// Who holds a handle has been told that the run exists; what the scopes say of it is asked anew.
async fn may_follow(app: &App, caller: &Caller, run: &RunKey) -> Result<(), HttpError> {
    let named = [Resource::one("runs", &run.friendly_id)];
    if caller.ability.can("read", &named) {
        return Ok(());
    }
    let opens = |facts: &Facts| may_read(&caller.ability, &run.friendly_id, facts);
    match app.runs.may_follow(run, opens).await {
        Ok(Some(true)) => Ok(()),
        Ok(Some(false)) => Err(HttpError::Forbidden),
        Ok(None) => Err(HttpError::NotFound { retry: false }),
        Err(_) => Err(HttpError::Unavailable),
    }
}

/// `runs-and-auth.md`, 13.1: a run may be named by itself, its task, its tags or its batch.
fn may_read(ability: &Ability, friendly_id: &str, facts: &Facts) -> bool {
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
    headers.get("x-trigger-api-version").is_none_or(|v| v.as_bytes() != CURRENT_API_VERSION)
}

/// The hold, spread by ±15 % so that polls do not end together, and never beyond the token's life.
fn hold_until(app: &App, caller: &Caller) -> Instant {
    let hold = app.hold.mul_f64(rand::random_range(0.85..1.15));
    let left = caller.expires_at.map_or(Duration::MAX, |expiry| {
        expiry.duration_since(SystemTime::now()).unwrap_or_default()
    });
    Instant::now() + hold.min(left)
}

fn finish(
    app: &App,
    shape: ShapeRequest,
    outcome: Outcome,
    origin: Option<HeaderValue>,
) -> Response<Body> {
    match outcome {
        Outcome::Answer(answer) => {
            if let Some(committed_at) = answer.committed_at {
                app.metrics.delivered(committed_at);
            }
            shape::answer(shape, answer)
        }
        Outcome::MustRefetch(handle) => shape::must_refetch(handle),
        Outcome::NotFound => refuse(&HttpError::NotFound { retry: false }, origin),
        Outcome::Forbidden => refuse(&HttpError::Forbidden, origin),
        Outcome::Unavailable => refuse(&HttpError::Unavailable, origin),
    }
}

fn refuse(error: &HttpError, origin: Option<HeaderValue>) -> Response<Body> {
    let mut response = error.response();
    cors::on_refusal(origin, response.headers_mut());
    response
}

/// Counts a held poll for as long as it lives, however it ends.
struct Held(Gauge);

impl Held {
    fn begin(holds: &Gauge) -> Self {
        holds.increment(1.0);
        Held(holds.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
