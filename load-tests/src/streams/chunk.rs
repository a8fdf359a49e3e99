//! What a chunk holds: its number in its stream and when it was sent, in a mark that is found in a
//! server's events without reading the JSON around it.

use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use memchr::memchr;

/// `#0000000042@0000000001234567#`; nothing else in an event holds a `#`.
const MARK: usize = 29;

/// A chunk as a reader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its number in its stream, from 0 on.
    pub number: u64,
    /// When it was sent; see [`now`].
    pub sent: u64,
}

/// Microseconds since this process first asked.
pub fn now() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_micros() as u64
}

/// A chunk as an SDK would write it, sent now.
pub fn body(number: u64) -> String {
    let sent = now();
    format!(
        r##"{{"data":{{"text":" the next few words","mark":"#{number:010}@{sent:016}#"}},"id":"{number:07}"}}"##
    )
}

/// Finds marks in the pieces of a stream of bytes, wherever they are cut.
#[derive(Default)]
pub struct Scanner {
    /// The beginning of a mark whose end has not come.
    begun: Vec<u8>,
}

impl Scanner {
    /// Shows the marks that end in this piece.
    pub fn marks(&mut self, piece: &[u8], mut take: impl FnMut(Mark)) -> Result<()> {
        let mut rest = piece;
        if !self.begun.is_empty() {
            let (more, after) = piece.split_at((MARK - self.begun.len()).min(piece.len()));
            self.begun.extend_from_slice(more);
            if self.begun.len() < MARK {
                return Ok(());
            }
            take(read(&self.begun)?);
            // A reader waits for long, and there are many.
            self.begun = Vec::new();
            rest = after;
        }
        while let Some(at) = memchr(b'#', rest) {
            let Some(mark) = rest.get(at..at + MARK) else {
                self.begun.extend_from_slice(&rest[at..]);
                return Ok(());
            };
            take(read(mark)?);
            rest = &rest[at + MARK..];
        }
        Ok(())
    }
}

fn read(mark: &[u8]) -> Result<Mark> {
    let text = std::str::from_utf8(mark).context("a mark that is no text")?;
    let inner = text.strip_prefix('#').and_then(|text| text.strip_suffix('#'));
    let (number, sent) = inner.and_then(|text| text.split_once('@')).context("a broken mark")?;
    ensure!((number.len(), sent.len()) == (10, 16), "a broken mark");
    Ok(Mark { number: number.parse()?, sent: sent.parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_wherever_the_bytes_are_cut() {
        let text: String = (0..3).map(body).collect::<Vec<_>>().join("\r\n4f\r\ndata: ");
        let whole = |pieces: &[&[u8]]| {
            let (mut scanner, mut found) = (Scanner::default(), Vec::new());
            for piece in pieces {
                scanner.marks(piece, |mark| found.push(mark.number)).unwrap();
            }
            found
        };
        let bytes = text.as_bytes();
        for cut in 0..bytes.len() {
            assert_eq!(whole(&[&bytes[..cut], &bytes[cut..]]), [0, 1, 2], "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(whole(&single), [0, 1, 2]);
    }

    #[test]
    fn a_mark_says_when_its_chunk_was_sent() {
        let before = now();
        let text = body(7);
        let mut found = None;
        Scanner::default().marks(text.as_bytes(), |mark| found = Some(mark)).unwrap();
        let mark = found.unwrap();
        assert!(mark.number == 7 && mark.sent >= before && mark.sent <= now());
        assert!(Scanner::default().marks(&[b'#'; 40], |_| {}).is_err());
    }
}
