//! A walsender that is held, so that its gateway is behind.

use std::process::Command;

use sqlx::PgPool;

/// The walsender of a slot, held in the middle of whatever it does until this is dropped.
pub struct Held {
    pid: i32,
}

impl Held {
    /// Holds the one that reads the slot whose name begins so; `None` if there is none now.
    pub async fn hold(pool: &PgPool, slot: &str) -> Option<Held> {
        let sql = "SELECT active_pid FROM pg_replication_slots
                   WHERE slot_name LIKE $1 || '%' AND active_pid IS NOT NULL";
        let pid = sqlx::query_scalar(sql).bind(slot).fetch_optional(pool).await;
        let pid: i32 = pid.expect("look at the slots")?;
        send("STOP", pid).then_some(Held { pid })
    }

    /// Lets it go on.
    pub fn release(self) {}
}

impl Drop for Held {
    fn drop(&mut self) {
        send("CONT", self.pid);
    }
}

/// Whether there was a process to send it to.
fn send(signal: &str, pid: i32) -> bool {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
    sent.expect("run kill").success()
}
