//! A subscriber that looks at every answer: versions and offsets never go back.

use std::time::Duration;

use reqwest::{Client, StatusCode};
use runwire::feed::position::Position;

use super::node::get;
use crate::support::gateway::Shape;

/// The version that a row's metadata holds, if the row has its metadata.
pub fn version(shape: &Shape) -> Option<i64> {
    let rows = shape.rows();
    let (_, row) = rows.last()?;
    let metadata = row.get("metadata")?.as_str()?;
    let value: serde_json::Value = serde_json::from_str(metadata).expect("JSON metadata");
    value["v"].as_i64()
}

/// The offset of an answer.
pub fn offset(shape: &Shape) -> Position {
    shape.offset().parse().unwrap_or_else(|_| panic!("no offset: {:?}", shape.headers))
}

/// What a client stores to go on from later.
#[derive(Clone, Debug)]
pub struct Place {
    handle: String,
    offset: Position,
    version: i64,
}

/// One subscription of one run, over answers, refetches, restarts and nodes.
pub struct Subscriber {
    client: Client,
    name: String,
    key: &'static str,
    run: String,
    /// Where it stands.
    place: Option<Place>,
    /// The handle that a 409 gave.
    refetch: Option<String>,
    /// What it saw, newest last.
    seen: Vec<String>,
    pub stored: Vec<Place>,
    pub counts: Counts,
}

/// What has happened to a subscriber.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub answers: u64,
    pub rows: u64,
    pub opens: u64,
    pub refetches: u64,
    pub unavailable: u64,
    pub broken: u64,
}

impl Subscriber {
    pub fn new(client: Client, name: String, key: &'static str, run: String) -> Subscriber {
        Subscriber {
            client,
            name,
            key,
            run,
            place: None,
            refetch: None,
            seen: Vec::new(),
            stored: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub fn run(&self) -> &str {
        &self.run
    }

    /// The version that it holds.
    pub fn version(&self) -> Option<i64> {
        self.place.as_ref().map(|place| place.version)
    }

    /// Forgets everything and follows this run.
    pub fn begin(&mut self, run: String) {
        self.run = run;
        (self.place, self.refetch) = (None, None);
        self.seen.clear();
        self.stored.clear();
    }

    /// Remembers where it stands.
    pub fn store(&mut self) {
        self.stored.extend(self.place.clone());
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
            (None, None) => "offset=-1".to_owned(),
            (None, Some(place)) => {
                let live = if live { "&live=true" } else { "" };
                format!("handle={}&offset={}{live}", place.handle, place.offset)
            }
        };
        let opening = query.ends_with("offset=-1");
        self.counts.opens += u64::from(opening);
        let asked = get(&self.client, url, self.key, &self.run, &query);
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
        let (offset, found) = (offset(answer), version(answer));
        self.note(format!("{url} {query}: {offset} v{found:?} {}", answer.handle()));
        if opening && answer.rows().len() != 1 {
            self.fail("an opening answer without its row");
        }
        self.counts.rows += answer.rows().len() as u64;
        // No metadata in a whole row is the version before the first.
        let found = if opening { Some(found.unwrap_or(0)) } else { found };
        if let Some(place) = &self.place {
            if found.is_some_and(|found| found < place.version) {
                self.fail(&format!("the version went back from {}", place.version));
            }
            if offset < place.offset {
                self.fail(&format!("the offset went back from {}", place.offset));
            }
        }
        let version = found.or(self.version()).unwrap_or(0);
        self.refetch = None;
        self.place = Some(Place { handle: answer.handle().to_owned(), offset, version });
    }

    fn note(&mut self, what: String) {
        if self.seen.len() >= 60 {
            self.seen.remove(0);
        }
        self.seen.push(what);
    }

    /// Says what happened and ends the test.
    pub fn fail(&self, what: &str) -> ! {
        let seen = self.seen.join("\n  ");
        panic!("{} of {}: {what}; at {:?}; it saw\n  {seen}", self.name, self.run, self.place);
    }
}
