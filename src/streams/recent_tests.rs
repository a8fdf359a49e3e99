//! What readers are given of what is recent, in any order of appends and reads.

use std::sync::Arc;

use proptest::prelude::*;

use super::batch::BatchBuilder;
use super::frames::Frames;
use super::recent::{After, MERGED, MERGED_RECORDS, RECENT, Recent, State};
use super::store::{Event, Position};

const READERS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// So many records of this many bytes each come together.
    Append(u64, usize),
    /// A reader is given what comes next, as often as this.
    Read(usize, usize),
    /// The store had more than it told of.
    Gap(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..20_u64, 0..2_000_usize).prop_map(|(records, size)| Step::Append(records, size)),
        2 => (1..700_u64, Just(1)).prop_map(|(records, size)| Step::Append(records, size)),
        1 => (1..3_u64, 100_000..400_000_usize).prop_map(|(n, size)| Step::Append(n, size)),
        8 => (0..READERS, 1..4_usize).prop_map(|(reader, times)| Step::Read(reader, times)),
        1 => (0..READERS, Just(usize::MAX)).prop_map(|(reader, times)| Step::Read(reader, times)),
        1 => (1..5_u64).prop_map(Step::Gap),
    ]
}

fn batch(first: u64, records: u64, size: usize) -> Event {
    let mut builder = BatchBuilder::new(0, 0);
    for seq_num in first..first + records {
        let body = format!("{seq_num}:{}", "x".repeat(size));
        let at = Position { seq_num, timestamp: seq_num * 2 };
        builder.push(at, std::iter::empty(), body.as_bytes(), 8 + body.len());
    }
    let next = first + records;
    let tail = Position { seq_num: next, timestamp: next * 2 - 2 };
    Event::Batch(Arc::new(builder.build(Some(tail)).expect("records")))
}

/// A reader of events, as a client is.
#[derive(Default)]
struct Reader {
    next: u64,
    frames: Frames,
    records: u64,
    metered: u64,
}

impl Reader {
    /// Takes the next event, if there is one. What is only in the store it has from there.
    fn read(&mut self, state: &mut State, written: u64) -> Result<bool, TestCaseError> {
        let (batch, from) = match state.after(self.next) {
            After::Batch(batch) => (batch, self.next),
            After::Nothing(tail) => {
                prop_assert_eq!((tail.seq_num, self.next), (written, written));
                return Ok(false);
            }
            After::Forgotten(known) => {
                prop_assert!(known <= written && known > self.next);
                self.next = known;
                return Ok(true);
            }
            After::Ended(error) => panic!("{error}"),
        };
        let pieces = self.frames.batch(&batch, from).expect("a part for it");
        let event = pieces.map(|piece| String::from_utf8(piece.to_vec()).unwrap()).concat();
        let lines: Vec<&str> = event.split('\n').collect();
        let ["event: batch", id, data, "", ""] = lines[..] else { panic!("{event}") };
        let data: serde_json::Value =
            serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        for record in data["records"].as_array().unwrap() {
            let body = record["body"].as_str().unwrap();
            prop_assert_eq!(record["seq_num"].as_u64(), Some(self.next));
            prop_assert_eq!(record["timestamp"].as_u64(), Some(self.next * 2));
            prop_assert_eq!(body.split(':').next(), Some(&*self.next.to_string()));
            self.next += 1;
            self.records += 1;
            self.metered += 8 + body.len() as u64;
        }
        prop_assert_eq!(data["tail"]["seq_num"].as_u64(), Some(self.next));
        prop_assert_eq!(batch.last() + 1, self.next);
        let expected = format!("id: {},{},{}", self.next - 1, self.records, self.metered);
        prop_assert_eq!(id, expected);
        Ok(true)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_gets_every_record_once_and_in_order_in_events_of_bounded_size(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let all = Arc::new(Recent::new(usize::MAX));
        let mut state = State::new(Arc::clone(&all));
        let (mut written, mut longest, mut most) = (0, 0, 0);
        state.take_in(Event::Tail(Position::default()));
        let mut readers: [Reader; READERS] = std::array::from_fn(|_| Reader::default());
        for step in steps {
            match step {
                Step::Append(records, size) => {
                    let event = batch(written, records, size);
                    if let Event::Batch(batch) = &event {
                        longest = longest.max(batch.size());
                        most = most.max(batch.records());
                    }
                    prop_assert!(state.take_in(event));
                    written += records;
                }
                Step::Read(reader, times) => {
                    let reader = &mut readers[reader];
                    for _ in 0..times {
                        if !reader.read(&mut state, written)? {
                            break;
                        }
                    }
                }
                Step::Gap(records) => {
                    written += records;
                    let tail = Position { seq_num: written, timestamp: 0 };
                    prop_assert!(state.take_in(Event::Tail(tail)));
                    prop_assert_eq!(state.kept().count(), 0);
                }
            }
            let kept: usize = state.kept().map(|batch| batch.size()).sum();
            prop_assert_eq!(all.used(), kept);
            prop_assert!(kept <= RECENT.max(longest), "{} bytes", kept);
            for batch in state.kept() {
                prop_assert!(batch.size() <= longest.max(MERGED), "{} bytes", batch.size());
                prop_assert!(batch.records() <= most.max(MERGED_RECORDS), "{}", batch.records());
            }
        }
        for reader in &mut readers {
            while reader.read(&mut state, written)? {}
        }
        drop(state);
        prop_assert_eq!(all.used(), 0);
    }

    #[test]
    fn who_lacks_many_small_batches_is_given_one_event_that_others_share(
        appends in 2..200_u64,
        begins in proptest::collection::vec(0..200_u64, 1..10),
    ) {
        let mut state = State::new(Arc::new(Recent::new(usize::MAX)));
        for n in 0..appends {
            state.take_in(batch(n, 1, 10));
        }
        let mut first = None;
        for begin in begins.into_iter().map(|begin| begin % appends) {
            let After::Batch(given) = state.after(begin) else { panic!("there is something") };
            prop_assert_eq!(given.last(), appends - 1);
            // Whoever comes from before makes it longer, and all others share that.
            let longest = first.get_or_insert_with(|| Arc::clone(&given));
            prop_assert!(Arc::ptr_eq(longest, &given) || given.first() < longest.first());
            *longest = given;
        }
    }
}
