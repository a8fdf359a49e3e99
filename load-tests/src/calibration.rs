//! How fast the machine's loopback is at the moment, so that figures of different hours can be told apart.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::Result;

use crate::cores::on_core;
use crate::statistics::Percentiles;

const ROUNDS: usize = 5;
const PAIRS: usize = 4000;
/// About what an answer and its request take together.
const BYTES: usize = 1500;

/// What one write and one read of 1,500 bytes over loopback cost on this core, in µs: the kernel's share
/// of a delivery, which no server can undercut. The median of five rounds.
pub fn loopback_us(core: usize) -> Result<f64> {
    on_core(core, || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut writer = TcpStream::connect(listener.local_addr()?)?;
        let (mut reader, _) = listener.accept()?;
        writer.set_nodelay(true)?;
        let message = [b'x'; BYTES];
        let mut read = [0; BYTES];
        let mut rounds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let began = Instant::now();
            for _ in 0..PAIRS {
                writer.write_all(&message)?;
                reader.read_exact(&mut read)?;
            }
            rounds.push(began.elapsed().as_secs_f64() * 1e6 / PAIRS as f64);
        }
        Ok(Percentiles::of(rounds).p50)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_and_a_read_take_some_time() {
        let cost = loopback_us(0).unwrap();
        assert!(cost > 0.1 && cost < 10_000.0, "{cost}");
    }
}
