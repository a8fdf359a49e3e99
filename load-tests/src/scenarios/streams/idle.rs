//! What readers cost that nothing happens to.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{LIMIT, Side, Streams, made, of, sound};
use crate::bench::Bench;
use crate::crowd::per_subscriber;
use crate::process::{Spent, resident_kib};
use crate::report::{Report, others};
use crate::statistics::{middle_and_range, ratio};
use crate::streams::readers;
use crate::streams::stand::Stand;
use crate::streams::tally::Tally;

/// Until freed memory has been given back.
const SETTLE: Duration = Duration::from_secs(2);
/// How many come at once. With many, hyper's buffer for what it reads next is at times one that the
/// request of another was read into, so that its page counts.
const AT_ONCE: usize = 8;
const QUIET: Duration = Duration::from_secs(10);
/// Descriptors that a process needs besides those of its connections.
const SPARE_DESCRIPTORS: u64 = 200;

struct Quiet {
    /// KiB per reader.
    each: f64,
    spent: Spent,
}

pub async fn run(options: &Streams, bench: &Bench, report: &mut Report) -> Result<()> {
    let n = options.idle;
    let most = bench.descriptors.saturating_sub(SPARE_DESCRIPTORS);
    ensure!(n as u64 <= most, "{n} readers need more than {} descriptors", bench.descriptors);
    let attempt = async |stand: &Stand| {
        let tally = Tally::new();
        if stand.side != Side::Bare {
            made(stand, 1).await?;
        }
        // The first one opens the store, which is not its own cost.
        let _first = readers::start([stand.reading(0)], &tally);
        sound(tally.all_live(1, LIMIT).await, &tally, "nobody is live")?;
        tokio::time::sleep(SETTLE).await;
        let empty = resident_kib(stand.parties.server)?;
        let all = std::iter::repeat_n(stand.reading(0), n);
        let _readers = readers::start_slowly(AT_ONCE, all, &tally);
        sound(tally.all_live(n + 1, LIMIT).await, &tally, "not every reader is live")?;
        tokio::time::sleep(SETTLE).await;
        let each = per_subscriber(empty, resident_kib(stand.parties.server)?, n);
        let before = stand.parties.read()?;
        tokio::time::sleep(QUIET).await;
        let spent = stand.parties.since(&before)?;
        sound(true, &tally, "not every reader stayed")?;
        eprintln!("{:?}, {n} readers: {each:.2} KiB each", stand.side);
        Ok(Quiet { each, spent })
    };
    let sides = [Side::Runwire, Side::Lite, Side::Bare];
    let tried = options.in_turns(bench, &sides, attempt).await?;
    report.heading(&format!("Streams: {n} readers of one stream that nothing happens to"));
    report.table([
        "server",
        "RSS per reader, KiB (min–max)",
        "server CPU while quiet, % of a core",
        "other CPU, max",
    ]);
    for (side, trials) in &tried {
        let busy = |t: &Quiet| t.spent.server.as_secs_f64() / QUIET.as_secs_f64() * 100.0;
        report.row([
            side.name().to_owned(),
            middle_and_range(trials.iter().map(|t| t.each), 2),
            middle_and_range(trials.iter().map(busy), 2),
            others(trials.iter().map(|t| t.spent.others)),
        ]);
    }
    let each = |side| of(&tried, side).iter().map(|t| t.each).collect::<Vec<_>>();
    report.line("");
    report.line(&format!(
        "- {} times the bare server's RSS per reader, {} times s2-lite's",
        ratio(each(Side::Runwire), each(Side::Bare)),
        ratio(each(Side::Runwire), each(Side::Lite)),
    ));
    Ok(())
}
