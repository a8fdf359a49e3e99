//! Who asks for something of S2's routes: a writer by a token of ours, or the webapp by the service
//! token. What let them in is looked at anew with each request, and for as long as a session goes on.

use std::time::{Duration, SystemTime};

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::App;
use super::error::HttpError;
use super::s2::refuse;
use super::s2_asked::{Asked, BASIN};
use crate::auth::{Ability, Caller, Refusal};
use crate::streams::access::{Authority, Grant};

/// How often it is asked again whether a session may go on, beside being told when it may not.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// For how long a session goes on while nobody can tell.
const UNTOLD: Duration = Duration::from_secs(5 * 60);
/// Who counts for what the webapp has live.
const SERVICE: &str = "service";

/// Who asks.
pub(super) enum Bearer {
    /// The webapp, by the service token of this fingerprint.
    Service(String),
    /// A writer. The caller is who the key belongs to that the token was issued for.
    Token(Box<Grant>, Option<Caller>),
}

impl Bearer {
    /// Who presents these headers.
    pub async fn of(app: &App, headers: &HeaderMap) -> Result<Bearer, HttpError> {
        let unknown = || {
            let text = "the access token is missing, expired, revoked, or none of this gateway's";
            refuse(StatusCode::UNAUTHORIZED, "authn", text)
        };
        let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(unknown)?;
        if let Some(fingerprint) = app.streams.service().find(bearer) {
            return Ok(Bearer::Service(fingerprint.to_owned()));
        }
        let grant = app.streams.issuer()?.read(bearer).ok_or_else(unknown)?;
        let caller = match &grant.authority {
            Authority::Key(basis) => {
                let caller = app.door.admit_again(&grant.environment, basis).await;
                let caller = caller.map_err(|refusal| match refusal {
                    Refusal::Unavailable => unavailable("nobody can tell who this is at present"),
                    _ => unknown(),
                })?;
                // What it was issued to could do all; what has bounds by now could not have it.
                if *caller.ability != Ability::Full {
                    return Err(denied());
                }
                Some(caller)
            }
            Authority::Service(fingerprint) => {
                app.streams.service().accepts(fingerprint).then_some(()).ok_or_else(unknown)?;
                None
            }
        };
        Ok(Bearer::Token(Box::new(grant), caller))
    }

    /// What is to be done for them, and in which basin; an error if they may not.
    pub fn may(
        &self,
        app: &App,
        asked: Asked,
        headers: &HeaderMap,
    ) -> Result<(Asked, String), HttpError> {
        let named = headers.get(BASIN).and_then(|basin| basin.to_str().ok());
        match (self, asked) {
            (Bearer::Service(_), asked @ Asked::Stream { .. }) => {
                let text = "the header s2-basin is missing";
                let missing = || refuse(StatusCode::BAD_REQUEST, "bad_header", text);
                Ok((asked, named.ok_or_else(missing)?.to_owned()))
            }
            // Through a basin that is there in any case: the one that is meant may not be.
            (Bearer::Service(_), asked) => Ok((asked, app.streams.basin().to_owned())),
            (Bearer::Token(grant, _), Asked::Stream { operation, name, suffix }) => {
                let same_basin = !headers.contains_key(BASIN) || named == Some(&grant.basin);
                let name = grant.stream(name);
                if !same_basin || !grant.allows(operation, &name) {
                    return Err(denied());
                }
                Ok((Asked::Stream { operation, name, suffix }, grant.basin.clone()))
            }
            (Bearer::Token(..), _) => Err(denied()),
        }
    }

    /// Who counts for what they have live.
    pub fn counts_as(&self) -> &str {
        match self {
            Bearer::Service(_) => SERVICE,
            Bearer::Token(grant, _) => &grant.environment,
        }
    }

    /// Returns once what they were let in by is good no more.
    pub async fn ended(self, app: &App) {
        match self {
            Bearer::Service(_) => std::future::pending().await,
            Bearer::Token(grant, caller) => {
                let key = async {
                    match (&grant.authority, caller) {
                        (Authority::Key(basis), Some(caller)) => {
                            key_ended(app, &grant.environment, basis, caller).await;
                        }
                        _ => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = until(grant.expires_at) => {}
                    () = key => {}
                }
            }
        }
    }
}

async fn key_ended(app: &App, environment: &str, basis: &str, mut caller: Caller) {
    let mut told = Instant::now();
    loop {
        let expires = async {
            match caller.expires_at {
                Some(end) => until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = caller.lease.ended() => {}
            () = expires => {}
            () = tokio::time::sleep(ASK_AGAIN.mul_f64(rand::random_range(0.85..1.15))) => {}
        }
        let expired = caller.expires_at.is_some_and(|end| end <= SystemTime::now());
        let ended = expired || caller.lease.over().is_some();
        match app.door.admit_again(environment, basis).await {
            Ok(again) if *again.ability == Ability::Full => {
                caller = again;
                told = Instant::now();
            }
            Err(Refusal::Unavailable) if !ended && told.elapsed() < UNTOLD => {}
            _ => return,
        }
    }
}

async fn until(end: SystemTime) {
    tokio::time::sleep(end.duration_since(SystemTime::now()).unwrap_or_default()).await;
}

fn denied() -> HttpError {
    refuse(StatusCode::FORBIDDEN, "permission_denied", "the access token does not allow this")
}

fn unavailable(text: &'static str) -> HttpError {
    refuse(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text)
}
