//! What a polling client says, whatever the version of HTTP: its place in a feed and the query made of it.

use crate::answer::Head;
use crate::layout::Target;

/// Where a client stands: what its next poll says.
#[derive(Clone, Debug)]
pub struct Cursor {
    handle: Vec<u8>,
    offset: Vec<u8>,
    cursor: Vec<u8>,
    /// Whether the next poll is to be held when nothing is new.
    pub live: bool,
}

impl Cursor {
    /// Of a client that knows nothing yet.
    pub fn start() -> Cursor {
        Cursor { handle: Vec::new(), offset: b"-1".to_vec(), cursor: Vec::new(), live: false }
    }

    /// Takes over what the head of an answer says.
    pub fn follow(&mut self, head: &Head) {
        keep(&mut self.handle, head.handle);
        keep(&mut self.offset, head.offset);
        keep(&mut self.cursor, head.cursor);
    }

    /// Starts over with the handle that a 409 gave.
    pub fn restart(&mut self, head: &Head) {
        *self = Cursor::start();
        keep(&mut self.handle, head.handle);
    }

    /// Appends path and query to `out`; the parameters are in the order of the real client.
    pub fn write_to(&self, target: &Target, out: &mut Vec<u8>) {
        let mut parts: Vec<&[u8]> = Vec::with_capacity(10);
        parts.extend([target.path.as_bytes(), b"?"]);
        if self.live {
            parts.extend([
                &b"cursor="[..],
                &self.cursor,
                b"&handle=",
                &self.handle,
                b"&live=true&",
            ]);
        } else if !self.handle.is_empty() {
            parts.extend([&b"handle="[..], &self.handle, b"&"]);
        }
        parts.extend([&b"log=full&offset="[..], &self.offset, target.tail.as_bytes()]);
        parts.iter().for_each(|part| out.extend_from_slice(part));
    }
}

fn keep(slot: &mut Vec<u8>, value: Option<&[u8]>) {
    if let Some(value) = value {
        slot.clear();
        slot.extend_from_slice(value);
    }
}

/// What SDK 4.x sends with every poll, but without `accept-encoding`, so that bodies can be searched.
pub const HEADERS: [(&str, &str); 7] = [
    ("trigger-version", "4.8.3"),
    ("x-trigger-electric-version", "1.0.0-beta.1"),
    ("x-trigger-api-version", "2025-07-16"),
    ("accept", "*/*"),
    ("accept-language", "*"),
    ("sec-fetch-mode", "cors"),
    ("user-agent", "node"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Head;

    fn text(cursor: &Cursor, target: &Target) -> String {
        let mut out = Vec::new();
        cursor.write_to(target, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_poll_says_what_the_last_answer_said() {
        let target = Target::tag(7);
        let mut cursor = Cursor::start();
        assert_eq!(text(&cursor, &target), "/realtime/v1/runs?log=full&offset=-1&tags=load-7");
        let answer = b"HTTP/1.1 200 OK\r\nelectric-handle: h\r\nelectric-offset: 5_0\r\n\r\n";
        cursor.follow(&Head::read(answer).unwrap());
        cursor.live = true;
        assert_eq!(
            text(&cursor, &target),
            "/realtime/v1/runs?cursor=&handle=h&live=true&log=full&offset=5_0&tags=load-7"
        );
        let conflict = b"HTTP/1.1 409 Conflict\r\nelectric-handle: n\r\n\r\n";
        cursor.restart(&Head::read(conflict).unwrap());
        assert_eq!(
            text(&cursor, &target),
            "/realtime/v1/runs?handle=n&log=full&offset=-1&tags=load-7"
        );
    }
}
