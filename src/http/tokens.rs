//! `POST /api/v1/auth/…`: public access tokens for whoever holds a key (`runs-and-auth.md` 17).
//!
//! Servers call these, not browsers: there is no CORS.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Response};
use serde_json::{Value, json};

use super::error::HttpError;
use super::schema::{Issues, Mint, MintAny};
use super::{App, body};
use crate::auth::{Ability, Caller, Expiry, Refusal, Wish};

/// The longest body that is read. A token that says more would be longer than any server reads.
const MAX_BODY_BYTES: usize = 64 << 10;
/// How long a token of `/auth/public-tokens` lives if nobody says.
const SHORT: Duration = Duration::from_secs(15 * 60);
/// How long a token of `/auth/jwt` lives if nobody says.
const LONG: Duration = Duration::from_secs(60 * 60);

/// `POST /api/v1/auth/jwt/claims`: what the SDK signs by itself with the root key that it holds.
pub async fn claims(State(app): State<Arc<App>>, headers: HeaderMap) -> Response<Body> {
    respond(
        unrestricted(&app, &headers)
            .await
            .map(|caller| format!(r#"{{"sub":{},"pub":true}}"#, json!(&*caller.environment_id))),
    )
}

/// `POST /api/v1/auth/public-tokens`: a token within the bounds of any key.
pub async fn public_tokens(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    respond(mint(&app, request).await)
}

/// `POST /api/v1/auth/jwt`: a token for whoever holds a key without bounds.
pub async fn jwt(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    respond(mint_any(&app, request).await)
}

async fn mint(app: &App, request: Request) -> Result<String, HttpError> {
    let (head, body) = request.into_parts();
    let caller = app.door.admit_key(&head.headers).await?;
    app.count(&head.headers)?;
    // It is at the door no more.
    drop(head);
    let wanted = Mint::read(&json_of(app, &caller, body).await?).map_err(bad_body)?;
    let expiry = expiry(wanted.expiration.as_ref(), SHORT);
    let wish = Wish {
        scopes: Some(wanted.scopes),
        one_time: wanted.one_time_use,
        realtime: wanted.realtime,
    };
    // Scopes are judged before the expiry is.
    wish.check(&caller)?;
    let token = app.door.mint_within_bounds(&caller, wish, expiry?).await?;
    Ok(json!({ "token": token }).to_string())
}

async fn mint_any(app: &App, request: Request) -> Result<String, HttpError> {
    let (head, body) = request.into_parts();
    let caller = unrestricted(app, &head.headers).await?;
    drop(head);
    let wanted = MintAny::read(&json_of(app, &caller, body).await?).map_err(bad_body)?;
    let expiry = expiry(wanted.expiration.as_ref(), LONG)?;
    let wish = Wish { scopes: wanted.scopes, ..Wish::default() };
    let token = app.door.mint(&caller, wish, expiry).await?;
    Ok(json!({ "token": token }).to_string())
}

/// Whoever holds a key without bounds. All others are told the same.
async fn unrestricted(app: &App, headers: &HeaderMap) -> Result<Caller, HttpError> {
    match app.door.admit_key(headers).await {
        Ok(caller) if *caller.ability == Ability::Full => app.count(headers).map(|()| caller),
        Err(Refusal::Unavailable) => Err(HttpError::Unavailable),
        Ok(_) | Err(_) => Err(HttpError::Refused(Refusal::MissingKey)),
    }
}

async fn json_of(app: &App, caller: &Caller, body: Body) -> Result<Value, HttpError> {
    let bytes = body::read(app, &caller.environment_id, body, MAX_BODY_BYTES).await?;
    serde_json::from_slice(&bytes).map_err(|_| HttpError::BadBody(None))
}

fn bad_body(issues: Issues) -> HttpError {
    HttpError::BadBody(Some(issues.into()))
}

fn expiry(asked: Option<&Value>, otherwise: Duration) -> Result<Expiry, HttpError> {
    let now = SystemTime::now();
    match asked {
        Some(Value::String(span)) => {
            Expiry::parse(span, now).map_err(|_| HttpError::InvalidExpiration)
        }
        Some(seconds) => seconds.as_f64().map(Expiry::at).ok_or(HttpError::InvalidExpiration),
        None => Ok(Expiry::after(otherwise, now)),
    }
}

fn respond(answer: Result<String, HttpError>) -> Response<Body> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return error.response(),
    };
    let mut response = Response::new(Body::from(answer));
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
