//! The log of a run: a line an event, hashed always and kept on demand. Equal seeds give equal hashes.
//! What is logged is the hosts' and the world's matter.

use std::fmt::{self, Write};

use super::clock::Ms;

/// The log of a run.
#[derive(Debug)]
pub struct Trace {
    hash: Fnv,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// An empty log; `keep`: its lines can be read afterwards.
    pub fn new(keep: bool) -> Trace {
        Trace { hash: Fnv(0xcbf2_9ce4_8422_2325), lines: keep.then(Vec::new) }
    }

    /// Logs a line.
    pub fn note(&mut self, now: Ms, what: fmt::Arguments<'_>) {
        let _ = writeln!(self.hash, "{now} {what}");
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>7}.{:03} s  {what}", now / 1000, now % 1000));
        }
    }

    /// A hash of all lines.
    pub fn hash(&self) -> u64 {
        self.hash.0
    }

    /// All lines, where they were kept.
    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}

/// FNV-1a, 64 bits: stable everywhere, unlike the standard library's hasher.
#[derive(Debug)]
struct Fnv(u64);

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

/// The first bytes of an id or digest: enough to tell them apart in a log.
#[derive(Clone, Copy)]
pub struct Short<'a>(pub &'a [u8]);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = [0; 4];
        first.iter_mut().zip(self.0).for_each(|(to, from)| *to = *from);
        write!(f, "{:08x}", u32::from_be_bytes(first))
    }
}
