//! End to end: real processes, real TLS, real data.
//! Contracts that need no process are in `contract`.
