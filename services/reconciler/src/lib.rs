//! Brings every pool to its desired size.
