//! Records, rendered once for all who read them.

use std::fmt::Write as _;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::store::Position;

const OPENING: &[u8] = br#"data: {"records":["#;
/// What is sent at once to somebody who catches up, in bytes; a record more at most.
pub(super) const PAGE: usize = 64 << 10;

/// Records that came together, as the data of one event (`streams-and-sessions.md`, 4.6).
#[derive(Debug)]
pub struct Batch {
    /// The whole `data:` line and the blank one after it.
    data: Bytes,
    marks: Box<[Mark]>,
    /// Where the records end in the data.
    end: u32,
    /// When its last record was taken in.
    timestamp: u64,
}

/// A record of a batch.
#[derive(Clone, Copy, Debug)]
struct Mark {
    seq_num: u64,
    /// Where it begins in the data.
    start: u32,
    /// What S2 counts it and those before it in the batch for, in bytes.
    metered: u32,
}

/// The part of a batch that a reader has not had.
#[derive(Debug)]
pub struct Part {
    /// How many records.
    pub records: u64,
    /// What S2 counts them for, in bytes.
    pub metered: u64,
    /// The data: a beginning that is its own, if need be, and what is shared with others.
    pub data: (Option<&'static [u8]>, Bytes),
}

impl Batch {
    /// The number of its first record.
    pub fn first(&self) -> u64 {
        self.marks[0].seq_num // never empty: `BatchBuilder::build` sees to that
    }

    /// The number of its last record.
    pub fn last(&self) -> u64 {
        self.marks[self.marks.len() - 1].seq_num // never empty, as above
    }

    /// When its last record was taken in, in milliseconds since 1970.
    pub fn last_timestamp(&self) -> u64 {
        self.timestamp
    }

    /// The numbers of its records.
    #[cfg(test)]
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.marks.iter().map(|mark| mark.seq_num)
    }

    /// The memory it takes, in bytes.
    pub fn size(&self) -> usize {
        self.data.len() + size_of::<Batch>() + self.marks.len() * size_of::<Mark>()
    }

    /// The records from this number on; `None` if it has none of them.
    pub fn part(&self, from: u64) -> Option<Part> {
        let skipped = self.marks.partition_point(|mark| mark.seq_num < from);
        let (had, marks) = self.marks.split_at(skipped);
        let (first, last) = (marks.first()?, marks.last()?);
        let data = match skipped {
            0 => (None, self.data.clone()),
            _ => (Some(OPENING), self.data.slice(first.start as usize..)),
        };
        let before = had.last().map_or(0, |mark| mark.metered);
        let metered = u64::from(last.metered - before);
        Some(Part { records: marks.len() as u64, metered, data })
    }

    /// How many records it has.
    pub(super) fn records(&self) -> usize {
        self.marks.len()
    }

    /// These batches as one, which tells of the tail what the last of them does. `None` without any.
    pub(super) fn merged<'a>(batches: impl Iterator<Item = &'a Batch> + Clone) -> Option<Batch> {
        let last = batches.clone().last()?;
        let closing = &last.data[last.end as usize..];
        // Each with what divides it from the next, and the opening with the first.
        let bytes: usize = batches.clone().map(|batch| batch.texts().len() + 1).sum();
        let mut data = Vec::with_capacity(OPENING.len() + bytes - 1 + closing.len());
        let mut marks = Vec::with_capacity(batches.clone().map(Batch::records).sum());
        data.put_slice(OPENING);
        let mut metered = 0;
        for batch in batches {
            if !marks.is_empty() {
                data.put_u8(b',');
            }
            // Who merges sees to it that this is short.
            let moved = (data.len() - OPENING.len()) as u32;
            marks.extend(batch.marks.iter().map(|mark| Mark {
                seq_num: mark.seq_num,
                start: mark.start + moved,
                metered: mark.metered.saturating_add(metered),
            }));
            metered = marks.last().map_or(0, |mark: &Mark| mark.metered);
            data.put_slice(batch.texts());
        }
        let end = data.len() as u32;
        data.put_slice(closing);
        Some(Batch { data: data.into(), marks: marks.into(), end, timestamp: last.timestamp })
    }

    /// Its records, divided by commas.
    fn texts(&self) -> &[u8] {
        &self.data[OPENING.len()..self.end as usize]
    }
}

/// Renders a batch record by record.
#[derive(Debug)]
pub struct BatchBuilder {
    data: BytesMut,
    marks: Vec<Mark>,
    timestamp: u64,
}

impl BatchBuilder {
    /// With room for a batch of about so many bytes and records.
    pub fn new(bytes: usize, records: usize) -> BatchBuilder {
        let mut data = BytesMut::with_capacity(bytes + bytes / 8 + records * 64 + 128);
        data.put_slice(OPENING);
        BatchBuilder { data, marks: Vec::with_capacity(records), timestamp: 0 }
    }

    /// Adds a record. What is no UTF-8 is made such, as S2's `raw` format does.
    pub fn push<'a>(
        &mut self,
        at: Position,
        headers: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
        body: &[u8],
        metered: usize,
    ) {
        if !self.marks.is_empty() {
            self.data.put_u8(b',');
        }
        let start = u32::try_from(self.data.len()).unwrap_or(u32::MAX); // S2's batches are 1 MiB
        let before = self.marks.last().map_or(0, |mark| mark.metered);
        let metered = u32::try_from(metered).unwrap_or(u32::MAX).saturating_add(before);
        self.marks.push(Mark { seq_num: at.seq_num, start, metered });
        let Position { seq_num, timestamp } = at;
        self.timestamp = timestamp;
        // Writing into memory does not fail.
        let _ = write!(self.data, r#"{{"seq_num":{seq_num},"timestamp":{timestamp}"#);
        if headers.len() > 0 {
            for (n, (name, value)) in headers.enumerate() {
                self.data.put_slice(if n == 0 { br#","headers":[["# } else { b",[" });
                self.text(name);
                self.data.put_u8(b',');
                self.text(value);
                self.data.put_u8(b']');
            }
            self.data.put_u8(b']');
        }
        if !body.is_empty() {
            self.data.put_slice(br#","body":"#);
            self.text(body);
        }
        self.data.put_u8(b'}');
    }

    /// Whether what it holds is enough for one page of those who catch up.
    pub fn is_page(&self) -> bool {
        self.data.len() >= PAGE
    }

    /// The batch; `None` without records. `tail` is what follows it, if it came while following.
    pub fn build(mut self, tail: Option<Position>) -> Option<Batch> {
        if self.marks.is_empty() {
            return None;
        }
        let end = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        self.data.put_u8(b']');
        if let Some(Position { seq_num, timestamp }) = tail {
            let _ = write!(self.data, r#","tail":{{"seq_num":{seq_num},"timestamp":{timestamp}}}"#);
        }
        self.data.put_slice(b"}\n\n");
        // Kept for long: no room that is not needed.
        let data = Bytes::from(self.data.freeze().to_vec());
        Some(Batch { data, marks: self.marks.into(), end, timestamp: self.timestamp })
    }

    fn text(&mut self, bytes: &[u8]) {
        // Text always has a form in JSON, and memory always takes it.
        let _ = serde_json::to_writer((&mut self.data).writer(), &String::from_utf8_lossy(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(tail: bool) -> Batch {
        let mut builder = BatchBuilder::new(10, 3);
        let headers: [(&[u8], &[u8]); 2] = [(b"a", b"1"), (b"", b"\xff")];
        for (n, body) in [&b"{\"n\":\"\xc3\xa4\"}"[..], b"", b"x\ny"].into_iter().enumerate() {
            let headers = if n == 1 { &headers[..] } else { &[] };
            let at = Position { seq_num: 7 + n as u64, timestamp: 100 };
            builder.push(at, headers.iter().copied(), body, 10 + n);
        }
        let tail = tail.then_some(Position { seq_num: 10, timestamp: 100 });
        builder.build(tail).unwrap()
    }

    fn text(part: &Part) -> String {
        let (own, shared) = &part.data;
        let own = String::from_utf8(own.unwrap_or_default().to_vec()).unwrap();
        own + std::str::from_utf8(shared).unwrap()
    }

    #[test]
    fn a_batch_is_one_line_in_the_contract_s_form() {
        let whole = batch(true).part(0).unwrap();
        assert_eq!((whole.records, whole.metered), (3, 33));
        let expected = concat!(
            r#"data: {"records":[{"seq_num":7,"timestamp":100,"body":"{\"n\":\"ä\"}"},"#,
            r#"{"seq_num":8,"timestamp":100,"headers":[["a","1"],["","�"]]},"#,
            r#"{"seq_num":9,"timestamp":100,"body":"x\ny"}],"tail":{"seq_num":10,"timestamp":100}}"#,
            "\n\n"
        );
        assert_eq!(text(&whole), expected);
    }

    #[test]
    fn batches_that_are_merged_are_what_they_would_be_had_they_come_together() {
        let body = |n: u64| format!("{n} \u{e4}");
        let of = |numbers: std::ops::Range<u64>| {
            let mut builder = BatchBuilder::new(0, 0);
            for n in numbers.clone() {
                let at = Position { seq_num: n, timestamp: n + 100 };
                let headers: [(&[u8], &[u8]); 1] = [(b"a", b"]}")];
                let headers = headers.iter().copied().take(n as usize % 2);
                builder.push(at, headers, body(n).as_bytes(), n as usize);
            }
            builder.build(Some(Position { seq_num: numbers.end, timestamp: 7 })).unwrap()
        };
        let (parts, whole) = ([of(3..4), of(4..7), of(7..9)], of(3..9));
        let merged = Batch::merged(parts.iter()).unwrap();
        assert_eq!((merged.first(), merged.last()), (3, 8));
        assert_eq!(merged.last_timestamp(), 108);
        assert_eq!(merged.size(), whole.size());
        for from in 0..9 {
            let (ours, theirs) = (merged.part(from).unwrap(), whole.part(from).unwrap());
            assert_eq!(text(&ours), text(&theirs));
            assert_eq!((ours.records, ours.metered), (theirs.records, theirs.metered));
        }
        let again = Batch::merged([&merged, &of(9..10)].into_iter()).unwrap();
        assert_eq!(text(&again.part(0).unwrap()), text(&of(3..10).part(0).unwrap()));
        assert!(Batch::merged(std::iter::empty()).is_none());
    }

    #[test]
    fn a_reader_in_its_middle_gets_what_it_has_not_had() {
        let batch = batch(false);
        assert_eq!((batch.first(), batch.last()), (7, 9));
        let rest = batch.part(9).unwrap();
        assert_eq!((rest.records, rest.metered), (1, 12));
        let expected = r#"data: {"records":[{"seq_num":9,"timestamp":100,"body":"x\ny"}]}"#;
        assert_eq!(text(&rest), format!("{expected}\n\n"));
        assert!(batch.part(10).is_none());
        assert!(BatchBuilder::new(0, 0).build(None).is_none());
    }
}
