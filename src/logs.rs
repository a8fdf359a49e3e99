//! The log: what is heard of whom.

use std::io::IsTerminal as _;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, prelude::*};

/// Libraries that log every failed try by themselves, where we log an outage once. `RUNWIRE_LOG` can
/// name them to hear them again.
const QUIET: &str = "pgwire_replication=off,sqlx::postgres::notice=off,sqlx_core::pool=warn,sqlx::pool=warn,sqlx_core::pool::connection=error,slatedb=warn,s2_lite=warn";

/// Lifts the cap on what libraries say, if it is `true`. What they say below info can hold keys,
/// tokens and rows.
const UNSAFE: &str = "RUNWIRE_UNSAFE_LOG_DEPENDENCIES";

/// The log's settings, as `--help` has them: they are read before all others.
pub const HELP: &str = "\
Log:
  [env: RUNWIRE_LOG=]
          The level (info), or single targets: info,runwire::auth=debug
  [env: RUNWIRE_UNSAFE_LOG_DEPENDENCIES=]
          Hear what libraries say below info as well, if this is `true`. It may hold keys, tokens and rows";

/// Starts the log: lines for people on a terminal, JSON elsewhere, at `RUNWIRE_LOG` or the level.
///
/// Nothing of ours at any level holds a secret or a row. Libraries promise nothing of the kind, so
/// they are heard from info upwards only, whatever `RUNWIRE_LOG` says.
pub fn install(level: &str) {
    let asked = std::env::var("RUNWIRE_LOG").ok();
    // Of two directives for one target, the last counts.
    let filter = asked
        .and_then(|asked| EnvFilter::try_new(format!("{QUIET},{asked}")).ok())
        .unwrap_or_else(|| EnvFilter::new(format!("{QUIET},{level}")));
    let lifted = std::env::var(UNSAFE).is_ok_and(|value| value == "true");
    let capped = filter_fn(move |event| lifted || may_be_heard(event));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if std::io::stderr().is_terminal() { lines.boxed() } else { lines.json().boxed() };
    // For the whole log, not for a layer: a library that only asks whether it would be heard makes
    // filters of layers forget what comes next.
    // An error means that a log was started before.
    let _ = Registry::default().with(filter).with(capped).with(lines).try_init();
    if lifted {
        tracing::warn!("libraries log without a cap: keys, tokens and rows may be in this log");
    }
}

fn may_be_heard(event: &Metadata<'_>) -> bool {
    let ours = event.target() == "runwire" || event.target().starts_with("runwire::");
    ours || *event.level() <= Level::INFO
}
