//! The shape protocol over HTTP: its query parameters and its three families of headers
//! (`runs-and-auth.md`, 3.1 and 5.1).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, VARY,
};
use axum::http::{Response, StatusCode};
use bytes::Bytes;

use super::cors;
use crate::feed::position::Position;
use crate::feed::{Answer, wire};
use crate::runs::columns::ColumnSet;

/// The protocol's parameters of one request. Of a repeated one the first counts; unknown ones,
/// `where`, `table` and `columns` among them, mean nothing here.
#[derive(Debug, Default)]
pub struct ShapeQuery<'a> {
    /// `handle`, or `shape_id` as old clients call it.
    pub handle: Option<Cow<'a, str>>,
    /// `offset`.
    pub offset: Option<Cow<'a, str>>,
    /// `live=true`.
    pub live: bool,
    /// `live_sse=true`, or its older name.
    pub sse: bool,
    /// The client was told at some time that a handle of this feed had expired.
    pub returns: bool,
    /// `skipColumns`, as sent.
    pub skip_columns: Option<Cow<'a, str>>,
    /// `throttleMs`, as sent.
    pub throttle: Option<Cow<'a, str>>,
    /// `tags`, as sent. Of repeated ones the last counts.
    pub tags: Option<Cow<'a, str>>,
    /// `createdAt`, as sent. Of repeated ones the last counts.
    pub created_at: Option<Cow<'a, str>>,
}

impl<'a> ShapeQuery<'a> {
    /// Reads a query string. Whatever it holds is no error.
    pub fn parse(query: &'a str) -> Self {
        let (mut handle, mut shape_id) = (None, None);
        let mut found = ShapeQuery::default();
        let mut live = None;
        for (name, value) in pairs(query) {
            match &*name {
                "handle" => handle = handle.or(Some(value)),
                "shape_id" => shape_id = shape_id.or(Some(value)),
                "offset" => found.offset = found.offset.or(Some(value)),
                "live" => live = live.or(Some(value == "true")),
                "live_sse" | "experimental_live_sse" => found.sse |= value == "true",
                "expired_handle" => found.returns = true,
                "throttleMs" => found.throttle = found.throttle.or(Some(value)),
                "tags" => found.tags = Some(value),
                "createdAt" => found.created_at = Some(value),
                "skipColumns" => found.skip_columns = found.skip_columns.or(Some(value)),
                _ => {}
            }
        }
        found.live = live.unwrap_or(false);
        found.handle = handle.or(shape_id).filter(|handle| !handle.is_empty());
        found
    }
}

/// The pairs of a query string. Most need no decoding, which takes longer than all else here.
fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    let coded = query.contains('%') || query.contains('+');
    query.split('&').filter_map(move |pair| {
        if coded {
            return form_urlencoded::parse(pair.as_bytes()).next();
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (!pair.is_empty()).then_some((Cow::Borrowed(name), Cow::Borrowed(value)))
    })
}

/// What the headers of an answer depend on besides the answer.
#[derive(Clone, Copy, Debug)]
pub struct ShapeRequest {
    /// Whether the request said `live=true`.
    pub live: bool,
    /// The columns that the client receives.
    pub columns: ColumnSet,
}

/// An answer with rows, or with the news that nothing is new; compressed, if `gzip` is given.
pub fn answer(request: ShapeRequest, answer: Answer, gzip: Option<Bytes>) -> Response<Body> {
    let compressed = gzip.is_some();
    let mut response = Response::new(Body::from(gzip.unwrap_or_else(|| answer.body.plain())));
    let headers = response.headers_mut();
    let complete = if request.live { &LIVE_HEADERS } else { &CATCH_UP_HEADERS };
    *headers = complete.filled(&Values::of(request, answer.handle, answer.offset));
    if compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if !answer.complete {
        UP_TO_DATE.iter().for_each(|name| drop(headers.remove(name)));
    }
    if answer.truncated {
        headers.insert(&TRUNCATED, HeaderValue::from_static("true"));
    }
    response
}

/// An answer of events that goes on behind the client's offset.
pub fn events(
    request: ShapeRequest,
    handle: String,
    offset: Position,
    events: Body,
) -> Response<Body> {
    let mut response = Response::new(events);
    let headers = response.headers_mut();
    feed_headers(headers);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // Proxies of nginx' kind would collect events otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Values::of(request, handle, offset).put_into(headers, request.live);
    response
}

/// The longest offset, in bytes.
const MAX_OFFSET: usize = "18446744073709551615_4294967295".len();

/// What headers say of one answer.
struct Values {
    handle: HeaderValue,
    offset: HeaderValue,
    /// The cursor of a live answer, and the schema of others.
    own: HeaderValue,
}

impl Values {
    fn of(request: ShapeRequest, handle: String, offset: Position) -> Values {
        // Neither a handle nor a number can hold what a header must not.
        let none = HeaderValue::from_static("");
        let handle = HeaderValue::from_maybe_shared(Bytes::from(handle));
        let mut place = String::with_capacity(MAX_OFFSET);
        // A string takes whatever it is given.
        let _ = write!(place, "{offset}");
        let own = if request.live { offset.lsn.0.into() } else { schema(request.columns) };
        Values {
            handle: handle.unwrap_or_else(|_| none.clone()),
            offset: HeaderValue::from_str(&place).unwrap_or(none),
            own,
        }
    }

    fn put_into(self, headers: &mut HeaderMap, live: bool) {
        put(headers, &HANDLE, self.handle);
        put(headers, &OFFSET, self.offset);
        if live { put(headers, &CURSOR, self.own) } else { put(headers, &SCHEMA, self.own) }
    }
}

/// Tells the client to drop what it has and start again under a new handle.
pub fn must_refetch(handle: String) -> Response<Body> {
    let mut response = Response::new(Body::from(wire::MUST_REFETCH));
    *response.status_mut() = StatusCode::CONFLICT;
    let headers = response.headers_mut();
    feed_headers(headers);
    if let Ok(handle) = HeaderValue::from_maybe_shared(Bytes::from(handle)) {
        put(headers, &HANDLE, handle);
    }
    response
}

/// A header under each of the names that some generation of clients reads.
type Names<const N: usize> = [HeaderName; N];

const fn name(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

static HANDLE: Names<3> =
    [name("electric-handle"), name("electric-shape-id"), name("x-electric-shape-id")];
static OFFSET: Names<3> = [
    name("electric-offset"),
    name("electric-chunk-last-offset"),
    name("x-electric-chunk-last-offset"),
];
static SCHEMA: Names<2> = [name("electric-schema"), name("x-electric-schema")];
static CURSOR: Names<2> = [name("electric-cursor"), name("electric-next-cursor")];
static UP_TO_DATE: Names<2> = [name("electric-up-to-date"), name("electric-chunk-up-to-date")];

/// Says that a list was longer than an answer may be.
static TRUNCATED: HeaderName = name("x-runwire-truncated");

/// All headers of a complete answer to `live=true`, and to others.
static LIVE_HEADERS: LazyLock<Complete> = LazyLock::new(|| Complete::with(true));
static CATCH_UP_HEADERS: LazyLock<Complete> = LazyLock::new(|| Complete::with(false));

/// The headers of an answer, to be copied: a copy takes its memory once and in the right size. What
/// differs is replaced by its place, which takes no look-up.
struct Complete {
    headers: HeaderMap,
    /// What those headers say that differ, which come first. A copy has them in the same order.
    says: Box<[Says]>,
}

#[derive(Clone, Copy)]
enum Says {
    Handle,
    Offset,
    Own,
}

impl Complete {
    fn with(live: bool) -> Complete {
        let empty = || HeaderValue::from_static("");
        let mut headers = HeaderMap::new();
        let values = Values { handle: empty(), offset: empty(), own: empty() };
        values.put_into(&mut headers, live);
        let says = headers.keys().map(|name| match name {
            name if HANDLE.contains(name) => Says::Handle,
            name if OFFSET.contains(name) => Says::Offset,
            _ => Says::Own,
        });
        let says = says.collect();
        feed_headers(&mut headers);
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        put(&mut headers, &UP_TO_DATE, empty());
        Complete { says, headers }
    }

    fn filled(&self, values: &Values) -> HeaderMap {
        let mut headers = self.headers.clone();
        for (value, says) in headers.values_mut().zip(&self.says) {
            match says {
                Says::Handle => value.clone_from(&values.handle),
                Says::Offset => value.clone_from(&values.offset),
                Says::Own => value.clone_from(&values.own),
            }
        }
        headers
    }
}

fn feed_headers(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    cors::on_feed(headers);
}

fn put<const N: usize>(headers: &mut HeaderMap, names: &'static Names<N>, value: HeaderValue) {
    for name in names {
        headers.insert(name, value.clone());
    }
}

fn schema(columns: ColumnSet) -> HeaderValue {
    static FULL: LazyLock<HeaderValue> = LazyLock::new(|| render_schema(ColumnSet::EXPOSED));
    if columns == ColumnSet::EXPOSED { FULL.clone() } else { render_schema(columns) }
}

fn render_schema(columns: ColumnSet) -> HeaderValue {
    // Column names are plain ASCII.
    HeaderValue::try_from(wire::schema(columns)).unwrap_or(HeaderValue::from_static("{}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Lsn;

    proptest::proptest! {
        #[test]
        fn a_query_is_read_as_forms_are(query in "([a-c=&%+2é]|%2C|%ff|=|&){0,40}") {
            let read: Vec<_> = pairs(&query).collect();
            let forms: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
            proptest::prop_assert_eq!(read, forms);
        }
    }

    #[test]
    fn each_header_says_its_own_whichever_answer_is_copied() {
        let columns = ColumnSet::EXPOSED;
        for live in [true, false] {
            let complete = if live { &LIVE_HEADERS } else { &CATCH_UP_HEADERS };
            let position = Position { lsn: Lsn(7), index: 3 };
            let values = Values::of(ShapeRequest { live, columns }, "handle".to_owned(), position);
            let own = values.own.clone();
            let mut filled = complete.filled(&values);
            let mut takes = |names: &[HeaderName], value: &HeaderValue| {
                names.iter().all(|name| filled.remove(name).as_ref() == Some(value))
            };
            assert!(takes(&HANDLE, &HeaderValue::from_static("handle")));
            assert!(takes(&OFFSET, &HeaderValue::from_static("7_3")));
            assert!(if live { takes(&CURSOR, &own) } else { takes(&SCHEMA, &own) });
            assert!(takes(&UP_TO_DATE, &HeaderValue::from_static("")));
            let mut rest = HeaderMap::new();
            feed_headers(&mut rest);
            rest.insert(VARY, HeaderValue::from_static("accept-encoding"));
            assert_eq!(filled, rest);
        }
    }

    #[test]
    fn the_first_of_a_repeated_parameter_counts_and_handle_goes_before_shape_id() {
        let query =
            ShapeQuery::parse("shape_id=old&offset=1_0&handle=new&offset=2_0&live=true&where=x");
        assert_eq!(query.handle.as_deref(), Some("new"));
        assert_eq!(query.offset.as_deref(), Some("1_0"));
        assert!(query.live);
        assert!(!ShapeQuery::parse("live=1").live);
        assert_eq!(ShapeQuery::parse("shape_id=old").handle.as_deref(), Some("old"));
        assert_eq!(ShapeQuery::parse("handle=").handle, None);
    }
}
