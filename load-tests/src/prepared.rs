//! The answer that the bare server gives: a real one of Runwire's, with its run and version exchanged.

use anyhow::{Context, Result};
use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::answer::{Framing, Head, join_chunks, versions};
use crate::record::Wanted;
use crate::runs::{self, FIRST_VERSION};

/// A recorded answer, ready to be given for any version of any run.
pub struct Template {
    headers: HeaderMap,
    offset_digits: usize,
    offset_end: String,
    body: Vec<u8>,
    /// Where the body names the run: the places of its digits.
    runs: Vec<usize>,
    /// Where it shows the version; nowhere if the answer says that nothing is new.
    versions: Vec<usize>,
    /// Whether the recorded head had a `date`, which hyper then adds by itself.
    pub dated: bool,
}

/// An answer that brings one version of a run.
pub struct Prepared {
    /// How many answers its feed had before; its offset says so.
    pub sequence: u64,
    /// All headers but those that hyper adds.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Written by the server's HTTP layer itself, from the body and the clock.
const WRITTEN_BY_HYPER: [&str; 4] = ["content-length", "transfer-encoding", "date", "connection"];

impl Template {
    /// Reads a recorded answer, head and body as they were on the wire.
    pub fn read(recorded: &[u8]) -> Result<Template> {
        let head = Head::read(recorded).context("the recorded answer has no complete head")?;
        let offset = head.offset.context("the recorded answer has no electric-offset")?;
        let offset_digits = offset.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let after_head = &recorded[head.body_start..];
        let body = match head.framing {
            Framing::Length(length) => after_head.get(..length).map(<[u8]>::to_vec),
            Framing::Chunked => join_chunks(after_head).map(|(body, _)| body),
        };
        let body = body.context("the recorded body is not complete")?;
        let id = runs::internal_id(0);
        let (name, digits) = id.split_at(id.len() - runs::DIGITS);
        let named = memchr::memmem::find_iter(&body, name).map(|at| at + name.len());
        let named: Vec<usize> = named.filter(|at| body.len() >= at + digits.len()).collect();

        let mut headers = HeaderMap::new();
        let mut dated = false;
        let lines = std::str::from_utf8(&recorded[..head.body_start])?.lines().skip(1);
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let name = name.trim().to_ascii_lowercase();
            dated |= name == "date";
            if !WRITTEN_BY_HYPER.contains(&name.as_str()) {
                let value = HeaderValue::from_str(value.trim())?;
                headers.append(HeaderName::from_bytes(name.as_bytes())?, value);
            }
        }
        Ok(Template {
            headers,
            offset_digits,
            offset_end: String::from_utf8_lossy(&offset[offset_digits..]).into_owned(),
            runs: named,
            versions: versions(&body).map(|(at, _)| at).collect(),
            body,
            dated,
        })
    }

    /// Whether it brings news. If not, it answers polls that are not live, always at once.
    pub fn has_news(&self) -> bool {
        !self.versions.is_empty()
    }

    /// The answer for one version of a run. Its offset is the sequence number, in as many digits as
    /// were recorded; nothing in it changes its length.
    pub fn prepare(&self, run: usize, version: u64, sequence: u64) -> Prepared {
        let mut body = self.body.clone();
        let mut write = |places: &[usize], digits: String| {
            for at in places {
                body[*at..at + digits.len()].copy_from_slice(digits.as_bytes());
            }
        };
        write(&self.runs, format!("{run:0width$}", width = runs::DIGITS));
        write(&self.versions, version.to_string());
        let mut headers = self.headers.clone();
        let (width, end) = (self.offset_digits, &self.offset_end);
        if let Ok(offset) = HeaderValue::from_str(&format!("{sequence:0width$}{end}")) {
            headers.insert("electric-offset", offset);
        }
        Prepared { sequence, headers, body: body.into() }
    }
}

/// An answer of about the size of Runwire's, for trials of the load generator without Runwire.
pub fn sample(wanted: Wanted) -> Vec<u8> {
    let key = r#""key":"\"public\".\"TaskRun\"/\"cload00000000000000000000\"""#;
    let value = format!(
        r#""id":"cload00000000000000000000","status":"EXECUTING","updatedAt":"2026-01-02T03:04:05.678","metadata":"{{\"v\":{FIRST_VERSION}}}""#
    );
    let row = match wanted {
        Wanted::Change => {
            format!(r#"{{{key},"value":{{{value}}},"headers":{{"operation":"update"}}}},"#)
        }
        Wanted::NothingNew => String::new(),
    };
    let body = format!(r#"[{row}{{"headers":{{"control":"up-to-date"}}}}]"#);
    let families = [
        (
            "electric-handle",
            "11121314151617181920-0123456789abcdef0123456789abcdef0123456789abcdef",
        ),
        ("electric-offset", "26500824_1"),
        ("electric-cursor", "26500824"),
        ("electric-up-to-date", ""),
        (
            "electric-shape-id",
            "11121314151617181920-0123456789abcdef0123456789abcdef0123456789abcdef",
        ),
        ("electric-chunk-last-offset", "26500824_1"),
        ("electric-next-cursor", "26500824"),
        ("electric-chunk-up-to-date", ""),
        ("content-type", "application/json; charset=utf-8"),
        ("cache-control", "no-store"),
        ("access-control-allow-origin", "*"),
        ("access-control-expose-headers", "*"),
        ("date", "Fri, 02 Jan 2026 03:04:05 GMT"),
    ];
    let mut text = String::from("HTTP/1.1 200 OK\r\n");
    for (name, value) in families {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::rows;

    #[test]
    fn only_the_run_the_version_and_the_offset_change_and_no_length_does() {
        let recorded = sample(Wanted::Change);
        let template = Template::read(&recorded).unwrap();
        assert!(template.dated && template.has_news());
        let prepared = template.prepare(42, FIRST_VERSION + 7, 1_000_003);
        let found: Vec<_> = rows(&prepared.body).collect();
        assert_eq!(found, [(42, FIRST_VERSION + 7)]);
        let text = String::from_utf8(prepared.body.to_vec()).unwrap();
        assert_eq!(text.matches(&runs::internal_id(42)).count(), 2);
        assert_eq!(prepared.headers["electric-offset"], "01000003_1");
        assert_eq!(prepared.headers.len(), 12, "all but date and content-length");
        assert!(!Template::read(&sample(Wanted::NothingNew)).unwrap().has_news());
        assert!(recorded.ends_with(&template.prepare(0, FIRST_VERSION, 0).body));
    }
}
