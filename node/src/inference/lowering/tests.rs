//! Lowered graphs.
