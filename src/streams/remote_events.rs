//! S2's server-sent events (`streams-and-sessions.md`, 4.6), as an S2 elsewhere tells of records.

use serde_json::Value;

use super::batch::{Batch, BatchBuilder};
use super::store::Position;

/// The longest line. Records of a batch have 1 MiB, as S2 counts, and at most six times that as JSON.
const MAX_LINE: usize = 8 << 20;

/// One event.
#[derive(Debug)]
pub(super) enum Said {
    /// Records: all together if they came while following, and else in pages.
    Batches(Vec<Batch>),
    /// The reader has all that there is.
    Tail(Position),
    /// It ends here.
    Done,
}

/// What has come and not been looked at.
#[derive(Debug, Default)]
pub(super) struct Sayings {
    text: Vec<u8>,
    /// Bytes that were looked at for a line's end.
    seen: usize,
    event: String,
}

impl Sayings {
    /// Takes in what came.
    pub fn push(&mut self, piece: &[u8]) {
        self.text.extend_from_slice(piece);
    }

    /// The next event; an error if it tells of one, or is none.
    pub fn next(&mut self) -> Result<Option<Said>, String> {
        while let Some(end) = self.text[self.seen..].iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.text.drain(..=self.seen + end).collect();
            self.seen = 0;
            let line = line.trim_ascii_end();
            if let Some(event) = line.strip_prefix(b"event:") {
                self.event = String::from_utf8_lossy(event.trim_ascii()).into_owned();
            } else if let Some(data) = line.strip_prefix(b"data:") {
                // S2's data is one line.
                let event = std::mem::take(&mut self.event);
                if let Some(said) = read(&event, data.trim_ascii())? {
                    return Ok(Some(said));
                }
            }
        }
        if self.text.is_empty() {
            // Tails are many, and mostly silent: no room for the largest batch so far.
            self.text = Vec::new();
        }
        self.seen = self.text.len();
        match self.seen > MAX_LINE {
            true => Err("the S2 said more than it may at once".to_owned()),
            false => Ok(None),
        }
    }
}

fn read(event: &str, data: &[u8]) -> Result<Option<Said>, String> {
    if data == b"[DONE]" {
        return Ok(Some(Said::Done));
    }
    let strange = || format!("the S2 said what it should not: {event:.20}");
    let data: Value = serde_json::from_slice(data).map_err(|_| strange())?;
    let position = |value: &Value| {
        let number = |name: &str| value[name].as_u64();
        Some(Position { seq_num: number("seq_num")?, timestamp: number("timestamp")? })
    };
    let said = match event {
        "batch" => {
            let records = data["records"].as_array().ok_or_else(strange)?;
            let tail = position(&data["tail"]);
            let (mut batches, mut builder) = (Vec::new(), BatchBuilder::new(0, 0));
            let mut next = None;
            for record in records {
                let at = position(record).ok_or_else(strange)?;
                // Whoever is given a batch counts on its order.
                if next.is_some_and(|next| at.seq_num < next) {
                    return Err(strange());
                }
                next = Some(at.seq_num + 1);
                push(&mut builder, at, record);
                if tail.is_none() && builder.is_page() {
                    let page = std::mem::replace(&mut builder, BatchBuilder::new(0, 0));
                    batches.extend(page.build(None));
                }
            }
            batches.extend(builder.build(tail));
            (!batches.is_empty()).then_some(Said::Batches(batches))
        }
        "ping" => Some(Said::Tail(position(&data["tail"]).ok_or_else(strange)?)),
        "error" => {
            let code = data["code"].as_str().unwrap_or("no code");
            return Err(format!("the S2 told of an error: {code:.40}"));
        }
        _ => None,
    };
    Ok(said)
}

fn text(value: &Value) -> &[u8] {
    value.as_str().unwrap_or_default().as_bytes()
}

fn push(builder: &mut BatchBuilder, at: Position, record: &Value) {
    let empty = Vec::new();
    let headers = record["headers"].as_array().unwrap_or(&empty);
    let body = text(&record["body"]);
    // As S2 counts, but for what was no UTF-8 and has come as such.
    let metered: usize =
        headers.iter().map(|pair| text(&pair[0]).len() + text(&pair[1]).len()).sum();
    let metered = 8 + 2 * headers.len() + metered + body.len();
    let pairs: Vec<_> = headers.iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect();
    builder.push(at, pairs.into_iter(), body, metered);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As S2 says it, with pings, a catch-up batch, one of a tail, and its end.
    const SAID: &str = concat!(
        "event: batch\nid: 1,2,30\ndata: {\"records\":[{\"seq_num\":0,\"timestamp\":5,\"body\":\"{\\\"n\\\":\\\"ä\\\"}\"},",
        "{\"seq_num\":1,\"timestamp\":5,\"headers\":[[\"\",\"trim\"]],\"body\":\"\\u0000\"}]}\n\n",
        "event: ping\ndata: {\"timestamp\":9,\"tail\":{\"seq_num\":2,\"timestamp\":5}}\n\n",
        ": a comment\r\nevent: batch\r\nid: 2,3,40\r\n",
        "data: {\"records\":[{\"seq_num\":2,\"timestamp\":7}],\"tail\":{\"seq_num\":3,\"timestamp\":7}}\r\n\r\n",
        "event: later\ndata: {}\n\ndata: [DONE]\n\n",
    );

    fn all(pieces: impl Iterator<Item = Vec<u8>>) -> Result<Vec<String>, String> {
        let (mut sayings, mut all) = (Sayings::default(), Vec::new());
        for piece in pieces {
            sayings.push(&piece);
            while let Some(said) = sayings.next()? {
                all.push(match said {
                    Said::Batches(batches) => {
                        let [batch] = &batches[..] else { panic!("{batches:?}") };
                        let part = batch.part(0).expect("records");
                        let text = String::from_utf8_lossy(&part.data.1);
                        format!("{} {} {text}", part.records, part.metered)
                    }
                    Said::Tail(tail) => format!("tail {}", tail.seq_num),
                    Said::Done => "done".to_owned(),
                });
            }
        }
        Ok(all)
    }

    #[test]
    fn events_are_read_however_they_are_cut() {
        let whole = all(std::iter::once(SAID.as_bytes().to_vec())).unwrap();
        assert_eq!(whole.len(), 4);
        // As S2 counts: 8 for a record, 2 for a header, and their texts.
        let first = r#"2 33 data: {"records":[{"seq_num":0,"timestamp":5,"body":"{\"n\":\"ä\"}"},"#;
        assert!(whole[0].starts_with(first), "{}", whole[0]);
        assert!(whole[0].contains(r#""headers":[["","trim"]],"body":"\u0000"}]}"#), "{}", whole[0]);
        assert_eq!(whole[1], "tail 2");
        assert!(whole[2].contains(r#""tail":{"seq_num":3,"timestamp":7}"#), "{}", whole[2]);
        assert_eq!(whole[3], "done");
        for size in 1..SAID.len() {
            let pieces = SAID.as_bytes().chunks(size).map(<[u8]>::to_vec);
            assert_eq!(all(pieces).unwrap(), whole, "in pieces of {size}");
        }
    }

    #[test]
    fn what_somebody_catches_up_with_comes_in_pages_and_a_tail_s_batch_whole() {
        let body = "x".repeat(1_000);
        let record = |n| format!(r#"{{"seq_num":{n},"timestamp":1,"body":"{body}"}}"#);
        let records = (0..200).map(record).collect::<Vec<_>>().join(",");
        for (tail, few) in [("", 2..10), (r#","tail":{"seq_num":200,"timestamp":1}"#, 1..2)] {
            let mut sayings = Sayings::default();
            sayings.push(
                format!("event: batch\ndata: {{\"records\":[{records}]{tail}}}\n").as_bytes(),
            );
            let Ok(Some(Said::Batches(batches))) = sayings.next() else { panic!("no batch") };
            assert!(few.contains(&batches.len()), "{}", batches.len());
            let numbers = batches.iter().flat_map(Batch::numbers);
            assert_eq!(numbers.collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_s2_would_not_say_is_an_error() {
        let twice = r#"{"records":[{"seq_num":3,"timestamp":1},{"seq_num":3,"timestamp":1}]}"#;
        for said in [
            "event: error\ndata: {\"code\":\"unavailable\",\"message\":\"x\"}\n".to_owned(),
            "event: batch\ndata: {\"records\":[{\"timestamp\":1}]}\n".to_owned(),
            "event: batch\ndata: nothing\n".to_owned(),
            format!("event: batch\ndata: {twice}\n"),
            "event: ping\ndata: {}\n".to_owned(),
            "x".repeat(MAX_LINE + 1),
        ] {
            let read = all(std::iter::once(said.clone().into_bytes()));
            assert!(read.is_err(), "{:.80}", said);
        }
    }
}
