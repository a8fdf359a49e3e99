//! A subscriber that looks at every answer: versions and offsets never go back, nothing comes twice.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use runwire::feed::position::Position;

use super::followed::{Followed, Rows};
use super::merged::{Merged, version_of};
use super::node::get_path;
use crate::support::gateway::Shape;

/// The version that a row's metadata holds, if the row has its metadata.
pub fn version(shape: &Shape) -> Option<i64> {
    let rows = shape.rows();
    let (_, row) = rows.last()?;
    row.get("metadata")?.as_str()?;
    version_of(row.as_object()?)
}

/// The offset of an answer.
pub fn offset(shape: &Shape) -> Position {
    shape.offset().parse().unwrap_or_else(|_| panic!("no offset: {:?}", shape.headers))
}

/// Where a client stands, which it can store to go on from later.
#[derive(Clone)]
pub struct Place {
    handle: String,
    /// As the last answer gave it.
    offset: String,
    /// The last offset of an answer that was up-to-date.
    seen: Option<Position>,
    /// Whether the last answer was up-to-date, rather than one of a list's first parts.
    complete: bool,
    merged: Merged,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (handle, offset, complete) = (&self.handle, &self.offset, self.complete);
        write!(f, "{offset} of {handle}, {} rows, complete: {complete}", self.merged.len())
    }
}

/// One subscription, over answers, refetches, restarts and nodes.
pub struct Subscriber {
    client: Client,
    name: String,
    key: &'static str,
    feed: Followed,
    /// Where it stands.
    place: Option<Place>,
    /// The handle that a 409 gave.
    refetch: Option<String>,
    /// Whether what was read for others just now does not serve it.
    anew: bool,
    /// What it saw, newest last.
    log: Vec<String>,
    pub stored: Vec<Place>,
    pub counts: Counts,
}

/// What has happened to a subscriber.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub answers: u64,
    pub rows: u64,
    pub opens: u64,
    pub parts: u64,
    pub entered: u64,
    pub deleted: u64,
    pub refetches: u64,
    pub unavailable: u64,
    pub broken: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.answers += other.answers;
        self.rows += other.rows;
        self.opens += other.opens;
        self.parts += other.parts;
        self.entered += other.entered;
        self.deleted += other.deleted;
        self.refetches += other.refetches;
        self.unavailable += other.unavailable;
        self.broken += other.broken;
    }
}

impl Subscriber {
    pub fn new(client: Client, name: String, key: &'static str, feed: Followed) -> Subscriber {
        Subscriber {
            client,
            name,
            key,
            feed,
            place: None,
            refetch: None,
            anew: false,
            log: Vec::new(),
            stored: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub fn feed(&self) -> &Followed {
        &self.feed
    }

    /// In what its copy differs from the table; `None` when it holds just that.
    pub fn difference(&self, wanted: &Rows, existing: &BTreeSet<String>) -> Option<String> {
        match &self.place {
            Some(place) if place.complete && self.refetch.is_none() => {
                place.merged.difference(wanted, existing)
            }
            _ => Some("it has no answer yet".to_owned()),
        }
    }

    /// Whether it has a part of an opening answer and wants the next.
    pub fn is_loading(&self) -> bool {
        self.refetch.is_none() && self.place.as_ref().is_some_and(|place| !place.complete)
    }

    /// Whether it holds rows of runs that are gone.
    pub fn has_leftovers(&self, wanted: &Rows) -> bool {
        self.place.as_ref().is_some_and(|place| place.merged.has_leftovers(wanted))
    }

    /// Forgets everything and follows this feed.
    pub fn begin(&mut self, feed: Followed) {
        self.feed = feed;
        (self.place, self.refetch, self.anew) = (None, None, false);
        self.log.clear();
        self.stored.clear();
    }

    /// Begins again, as a client that came to grief before.
    pub fn begin_anew(&mut self) {
        self.begin(self.feed.clone());
        self.anew = true;
    }

    /// Remembers where it stands.
    pub fn store(&mut self) {
        self.stored.extend(self.place.clone().filter(|place| place.complete));
    }

    /// Goes back to a remembered place, as a page that was closed meanwhile.
    pub fn resume(&mut self, at: usize) {
        self.note(format!("resumes {:?}", self.stored[at]));
        self.place = Some(self.stored[at].clone());
        self.refetch = None;
    }

    /// One request, at most `within` long.
    pub async fn step(&mut self, url: &str, live: bool, within: Duration) {
        let query = match (&self.refetch, &self.place) {
            (Some(handle), _) => format!("handle={handle}&offset=-1"),
            (None, None) if self.anew => "expired_handle=x&offset=-1".to_owned(),
            (None, None) => "offset=-1".to_owned(),
            (None, Some(place)) => {
                // A client polls only once it is up-to-date.
                let live = if live && place.complete { "&live=true" } else { "" };
                format!("handle={}&offset={}{live}", place.handle, place.offset)
            }
        };
        let opening = query.ends_with("offset=-1");
        self.counts.opens += u64::from(opening);
        let path = format!("{}{query}", self.feed.path());
        let asked = get_path(&self.client, url, self.key, &path);
        let Ok(answer) = tokio::time::timeout(within, asked).await else {
            return self.note(format!("{url} {query}: left"));
        };
        let Ok(answer) = answer else {
            self.counts.broken += 1;
            return tokio::time::sleep(Duration::from_millis(20)).await;
        };
        match answer.status {
            StatusCode::OK => self.take(url, &query, opening, &answer),
            StatusCode::CONFLICT => {
                self.counts.refetches += 1;
                self.note(format!("{url} {query}: 409, {}", answer.handle()));
                self.refetch = Some(answer.handle().to_owned());
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                self.counts.unavailable += 1;
                self.note(format!("{url} {query}: 503"));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => self.fail(&format!("{url} {query}: {other} {}", answer.text)),
        }
    }

    fn take(&mut self, url: &str, query: &str, opening: bool, answer: &Shape) {
        self.counts.answers += 1;
        let messages = answer.messages();
        let complete = messages.last().is_some_and(|m| m["headers"]["control"] == "up-to-date");
        self.counts.parts += u64::from(!complete);
        let rows: Vec<_> = messages.iter().filter(|message| message.get("key").is_some()).collect();
        self.counts.rows += rows.len() as u64;
        self.note(format!(
            "{url} {query}: {} {} rows, complete: {complete}, {}",
            answer.offset(),
            rows.len(),
            answer.handle()
        ));
        if answer.headers.contains_key("electric-up-to-date") != complete {
            self.fail("the header and the body disagree on up-to-date");
        }
        if !complete && query.ends_with("live=true") {
            self.fail("a poll was answered in parts");
        }
        let mut place = match (self.place.take(), opening) {
            (Some(mut place), true) => {
                place.merged.restart();
                place
            }
            (Some(place), false) => place,
            (None, _) => Place {
                handle: String::new(),
                offset: String::new(),
                seen: None,
                complete: false,
                merged: Merged::default(),
            },
        };
        let loading = opening || !place.complete;
        for row in &rows {
            let operation = &row["headers"]["operation"];
            self.counts.deleted += u64::from(operation == "delete");
            self.counts.entered += u64::from(!loading && operation == "insert");
            if let Err(wrong) = place.merged.apply(&self.feed, row) {
                self.fail(&wrong);
            }
        }
        if matches!(self.feed, Followed::Run(_)) && opening && rows.len() != 1 {
            self.fail("an opening answer without its row");
        }
        if complete {
            let offset = offset(answer);
            if place.seen.is_some_and(|seen| offset < seen) {
                self.fail(&format!("the offset went back from {:?}", place.seen));
            }
            place.seen = Some(offset);
        }
        place.handle = answer.handle().to_owned();
        place.offset = answer.offset().to_owned();
        place.complete = complete;
        self.refetch = None;
        self.place = Some(place);
    }

    fn note(&mut self, what: String) {
        if self.log.len() >= 60 {
            self.log.remove(0);
        }
        self.log.push(what);
    }

    /// Says what happened and ends the test.
    pub fn fail(&self, what: &str) -> ! {
        let log = self.log.join("\n  ");
        panic!("{} of {:?}: {what}; it saw\n  {log}", self.name, self.feed);
    }
}
