//! What processes cost, as `/proc` tells it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// `USER_HZ`: the unit of every CPU time in `/proc` on Linux, whatever the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

fn ticks(count: u64) -> Duration {
    TICK.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The fields of `/proc/PID/stat` from the third (`state`) on; the name before may hold spaces.
fn stat_fields(pid: u32) -> Result<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    let (_, rest) = text.rsplit_once(')').context("an unknown form of /proc/PID/stat")?;
    // `state` is a letter; it and negative fields count as 0, none of them is read.
    Ok(rest.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

const PARENT: usize = 1;
const USER: usize = 11;
const SYSTEM: usize = 12;
const CHILDREN_USER: usize = 13;
const CHILDREN_SYSTEM: usize = 14;

fn sum(fields: &[u64], wanted: &[usize]) -> Duration {
    ticks(wanted.iter().filter_map(|&index| fields.get(index)).sum())
}

/// CPU time that the process has used, in user and system mode.
pub fn cpu(pid: u32) -> Result<Duration> {
    Ok(sum(&stat_fields(pid)?, &[USER, SYSTEM]))
}

/// CPU time of the process' children that have ended and been waited for.
pub fn cpu_of_ended_children(pid: u32) -> Result<Duration> {
    Ok(sum(&stat_fields(pid)?, &[CHILDREN_USER, CHILDREN_SYSTEM]))
}

/// CPU time of the process and its direct children, those that have ended included.
pub fn cpu_with_children(pid: u32) -> Result<Duration> {
    let mut total = cpu(pid)? + cpu_of_ended_children(pid)?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end between the listing and the reading.
        if let Ok(fields) = stat_fields(child)
            && fields.get(PARENT) == Some(&u64::from(pid))
        {
            total += sum(&fields, &[USER, SYSTEM]);
        }
    }
    Ok(total)
}

/// Resident memory of the process in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().next());
    number.context("no VmRSS")?.parse().context("VmRSS is no number")
}

/// Time that all cores together were busy since the machine started.
fn machine_busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> =
        line.split_ascii_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
    // user nice system idle iowait irq softirq steal; guests are counted in user already.
    Ok(sum(&fields, &[0, 1, 2, 5, 6, 7]))
}

/// The load averages of 1, 5 and 15 minutes.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Whose CPU time a measurement tells apart.
#[derive(Clone, Copy)]
pub struct Parties {
    /// The server under test.
    pub server: u32,
    /// The database's first process, if one takes part.
    pub postgres: Option<u32>,
}

/// CPU times at one moment.
pub struct Reading {
    at: Instant,
    server: Duration,
    client: Duration,
    postgres: Duration,
    machine: Duration,
}

/// CPU times spent between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// By the server under test.
    pub server: Duration,
    /// By this process: subscribers and writer.
    pub client: Duration,
    /// By the database and its backends, the walsender among them.
    pub postgres: Duration,
    /// By everybody else on the machine, as a share of one core.
    pub others: f64,
}

impl Parties {
    /// Reads all counters.
    pub fn read(self) -> Result<Reading> {
        Ok(Reading {
            at: Instant::now(),
            server: cpu(self.server)?,
            client: cpu(std::process::id())?,
            postgres: self.postgres.map_or(Ok(Duration::ZERO), cpu_with_children)?,
            machine: machine_busy()?,
        })
    }

    /// What was spent since `before`.
    pub fn since(self, before: &Reading) -> Result<Spent> {
        let now = self.read()?;
        let wall = now.at - before.at;
        let server = now.server.saturating_sub(before.server);
        let client = now.client.saturating_sub(before.client);
        let postgres = now.postgres.saturating_sub(before.postgres);
        let machine = now.machine.saturating_sub(before.machine);
        let others = machine.saturating_sub(server + client + postgres);
        let others = others.as_secs_f64() / wall.as_secs_f64().max(1e-9);
        Ok(Spent { server, client, postgres, others })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_memory_and_its_work_is_not_taken_for_noise() {
        let own = std::process::id();
        assert!(resident_kib(own).unwrap() > 100);
        let parties = Parties { server: own, postgres: None };
        let before = parties.read().unwrap();
        let end = Instant::now() + Duration::from_millis(150);
        let mut spins = 0u64;
        while Instant::now() < end {
            spins = std::hint::black_box(spins + 1);
        }
        let spent = parties.since(&before).unwrap();
        assert!(spent.server >= Duration::from_millis(30), "{spent:?}");
    }
}
