//! The peer: s2-lite as its authors start it, in a process of its own.

use anyhow::{Result, anyhow};
use s2_lite::server::{LiteArgs, run};

/// The basin, which streams come to be in by being written or read, as under Runwire.
pub const BASIN: &str = "trigger-realtime";
/// What makes it, in the form of s2-lite's `--init-file`.
pub const INIT: &str = r#"{"basins":[{"name":"trigger-realtime","config":{"create_stream_on_append":true,"create_stream_on_read":true,"default_stream_config":{"retention_policy":"30days"}},"streams":[]}]}"#;

/// Serves until standard input ends, so that it cannot outlive the process that started it.
pub fn serve(args: LiteArgs) -> Result<()> {
    std::thread::spawn(|| {
        // Whether it ends well or not makes no difference.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(args)).map_err(|error| anyhow!("{error:#}"))
}
