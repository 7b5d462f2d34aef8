//! The command line of crafter.

fn main() {}
