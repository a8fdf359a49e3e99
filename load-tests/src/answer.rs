//! HTTP/1.1 answers, read as cheaply as the subscribers need it: framing and three headers.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(usize),
    /// By chunks.
    Chunked,
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// The status code.
    pub status: u16,
    /// Where the body begins.
    pub body_start: usize,
    /// How it ends.
    pub framing: Framing,
    /// `electric-handle`.
    pub handle: Option<&'a [u8]>,
    /// `electric-offset`.
    pub offset: Option<&'a [u8]>,
    /// `electric-cursor`.
    pub cursor: Option<&'a [u8]>,
}

static END_OF_HEAD: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
static VERSION: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#"\"v\":"#));
static KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#"TaskRun\"/\"cload"#));

impl<'a> Head<'a> {
    /// Reads the head at the start of `bytes`; `None` while it is not complete.
    pub fn read(bytes: &'a [u8]) -> Option<Head<'a>> {
        let end = END_OF_HEAD.find(bytes)?;
        let status = bytes.get(9..12).and_then(number).unwrap_or(0);
        let mut head = Head {
            status: u16::try_from(status).unwrap_or(0),
            body_start: end + 4,
            framing: Framing::Length(0),
            handle: None,
            offset: None,
            cursor: None,
        };
        let mut rest = &bytes[..end + 2];
        while let Some(line_end) = memchr::memchr(b'\n', rest) {
            let line = &rest[..line_end.saturating_sub(1)];
            rest = &rest[line_end + 1..];
            // The length tells most names apart; a comparison follows for the few that remain.
            match memchr::memchr(b':', line) {
                Some(14) if named(line, b"content-length") => {
                    if let Some(length) = number(value(line, 14)) {
                        head.framing = Framing::Length(length as usize);
                    }
                }
                Some(17) if named(line, b"transfer-encoding") => head.framing = Framing::Chunked,
                Some(15) if named(line, b"electric-handle") => head.handle = Some(value(line, 15)),
                Some(15) if named(line, b"electric-offset") => head.offset = Some(value(line, 15)),
                Some(15) if named(line, b"electric-cursor") => head.cursor = Some(value(line, 15)),
                _ => {}
            }
        }
        Some(head)
    }
}

fn named(line: &[u8], name: &[u8]) -> bool {
    line[..name.len()].eq_ignore_ascii_case(name)
}

fn value(line: &[u8], colon: usize) -> &[u8] {
    line[colon + 1..].trim_ascii()
}

/// The decimal number that `bytes` begins with.
pub fn number(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&bytes[..digits]).ok()?.parse().ok()
}

/// Joins a chunked body; `None` while its last chunk is missing. The second value is how many bytes
/// it took.
pub fn join_chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let line_end = at + memchr::memchr(b'\n', bytes.get(at..)?)?;
        let size = std::str::from_utf8(&bytes[at..line_end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        let start = line_end + 1;
        let end = start.checked_add(size)?;
        bytes.get(..end + 2)?;
        at = end + 2;
        if size == 0 {
            return Some((body, at));
        }
        body.extend_from_slice(&bytes[start..end]);
    }
}

/// Every version number that the body shows, in order, with the place where its digits begin.
///
/// The writer sets a run's metadata to `{"v":n}`, which stands in the body as a string.
pub fn versions(body: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    VERSION.find_iter(body).filter_map(|at| {
        let digits = at + VERSION.needle().len();
        Some((digits, number(&body[digits..])?))
    })
}

/// Every row that the body shows: which run, and which version of it.
pub fn rows(body: &[u8]) -> impl Iterator<Item = (u32, u64)> {
    let mut keys = KEY.find_iter(body).peekable();
    let mut key = None;
    versions(body).filter_map(move |(at, version)| {
        // A row's key stands before its values.
        while let Some(next) = keys.next_if(|next| *next < at) {
            key = Some(next);
        }
        let run = number(&body[key? + KEY.needle().len()..])?;
        Some((u32::try_from(run).ok()?, version))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_gives_its_framing_and_the_three_headers_that_polling_needs() {
        let text = b"HTTP/1.1 200 OK\r\nElectric-Handle: h-1\r\nelectric-offset: 12_3\r\n\
            electric-cursor:9\r\nx-electric-offset: no\r\ncontent-length: 2\r\n\r\n[]";
        let head = Head::read(text).unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.framing, Framing::Length(2));
        assert_eq!(&text[head.body_start..], b"[]");
        assert_eq!(head.handle, Some(&b"h-1"[..]));
        assert_eq!(head.offset, Some(&b"12_3"[..]));
        assert_eq!(head.cursor, Some(&b"9"[..]));
        assert_eq!(Head::read(&text[..40]), None);
    }

    #[test]
    fn chunks_are_joined_once_the_last_has_come() {
        let text = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(join_chunks(text), Some((b"abcde".to_vec(), text.len())));
        for end in 0..text.len() {
            assert_eq!(join_chunks(&text[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn versions_are_found_in_the_escaped_metadata() {
        let body = br#"[{"value":{"metadata":"{\"v\":1000001}"}},{"value":{"metadata":"{\"v\":1000002}"}}]"#;
        let found: Vec<u64> = versions(body).map(|(_, version)| version).collect();
        assert_eq!(found, [1_000_001, 1_000_002]);
    }

    #[test]
    fn a_row_is_a_key_and_the_version_after_it() {
        let row = |run: usize, version: u64| {
            let id = crate::runs::internal_id(run);
            format!(
                r#"{{"key":"\"public\".\"TaskRun\"/\"{id}\"","value":{{"id":"{id}","metadata":"{{\"v\":{version}}}"}}}}"#
            )
        };
        let gone = row(9, 0).replace(r#"\"v\":0"#, "");
        let body = [row(7, 1_000_001), gone, row(0, 1_000_005)].join(",");
        let found: Vec<_> = rows(body.as_bytes()).collect();
        assert_eq!(found, [(7, 1_000_001), (0, 1_000_005)]);
    }
}
