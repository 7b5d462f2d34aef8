//! Builds, sets up, demonstrates, tests and measures crafter.

fn main() {}
