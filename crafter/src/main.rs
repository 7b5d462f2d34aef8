//! crafter
fn main(){}
