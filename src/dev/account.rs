//! Whom Postgres runs as: it refuses root, so root's clusters belong to an unprivileged user.

use std::path::Path;
use std::process::Stdio;

use nix::unistd::{Uid, User};
use tokio::process::Command;

/// The user that runs the database's programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    /// Set only where we must drop to somebody else.
    switch: Option<(u32, u32)>,
}

impl Account {
    /// The current user, or an unprivileged one if that is root.
    pub(crate) fn for_postgres() -> Option<Account> {
        if !Uid::effective().is_root() {
            return Some(Account { switch: None });
        }
        let user = ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .filter(|user| !user.uid.is_root())?;
        Some(Account { switch: Some((user.uid.as_raw(), user.gid.as_raw())) })
    }

    /// Makes the command run as this user, away from our directory (which it may not enter) and
    /// from our terminal's Ctrl-C.
    pub(crate) fn apply(self, command: &mut std::process::Command) {
        use std::os::unix::process::CommandExt;
        command.current_dir("/").process_group(0).stdin(Stdio::null());
        command.env("LC_ALL", "C").env_remove("PGDATA").env_remove("PGPORT");
        if let Some((uid, gid)) = self.switch {
            command.uid(uid).gid(gid);
        }
    }

    /// A command of this user; killed if its future is dropped.
    pub(crate) fn command(self, program: &Path) -> Command {
        let mut command = std::process::Command::new(program);
        self.apply(&mut command);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        command
    }

    /// Hands a directory to this user.
    pub(crate) fn own(self, path: &Path) -> std::io::Result<()> {
        match self.switch {
            Some((uid, gid)) => std::os::unix::fs::chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    /// Whether files of this owner are ours or this user's.
    pub(crate) fn owns(self, owner: u32) -> bool {
        owner == uid() || self.switch.is_some_and(|(uid, _)| uid == owner)
    }

    /// Whether this user can use the path, by asking as that user: modes, ACLs and mounts all count.
    pub(crate) async fn can(self, access: &str, path: &Path) -> bool {
        let mut test = self.command(Path::new("test"));
        test.arg(access).arg(path).stdout(Stdio::null()).stderr(Stdio::null());
        test.status().await.is_ok_and(|status| status.success())
    }
}

/// The effective user's id.
pub(crate) fn uid() -> u32 {
    Uid::effective().as_raw()
}
