//! Who may take part: the certificate authority, join tokens, enrolment, nodes and their liveness.
//! Rounds and what nodes work on live in `rounds`.

pub mod authority;
pub mod certificates;
pub mod enrolment;
pub mod nodes;
pub mod tokens;
