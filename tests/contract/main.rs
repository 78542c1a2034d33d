//! Contracts between rooms that no single crate can check.
//! Behaviour of running processes is tested in `e2e`.

mod generated_code;
