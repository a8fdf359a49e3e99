//! Cleans up after us, however we end.
//!
//! Statics are not dropped, `SIGKILL` runs nothing, and a death signal needs unsafe code. So a small
//! shell waits for the end of a pipe whose other end only we hold, then stops the database and
//! removes its files. Dropping the cluster takes the same way: it closes the pipe and waits.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::account::Account;
use super::binaries::Binaries;

/// `$1` data directory, `$2` how to stop, `$3` directory to remove, `$4` pg_ctl.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
while read -r _; do :; done
if [ -f "$1/postmaster.pid" ]; then
    "$4" -D "$1" -m "$2" -t 20 -w stop || { read -r pid < "$1/postmaster.pid" && kill -KILL "$pid"; }
fi
rm -rf "$3"
"#;

#[derive(Debug)]
pub(crate) struct Guardian(Child);

impl Guardian {
    pub(crate) fn start(
        account: Account,
        binaries: &Binaries,
        data: &Path,
        mode: &str,
        remove: &Path,
    ) -> io::Result<Guardian> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(SCRIPT).arg("runwire-guardian");
        command.arg(data).arg(mode).arg(remove).arg(binaries.program("pg_ctl"));
        command.envs(binaries.environment());
        account.apply(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Guardian(command.spawn()?))
    }

    /// Lets it do its work now, and waits.
    pub(crate) fn finish(&mut self) {
        drop(self.0.stdin.take());
        // It is our child and never waited for elsewhere; if it is gone, there is nothing to await.
        let _ = self.0.wait();
    }
}
