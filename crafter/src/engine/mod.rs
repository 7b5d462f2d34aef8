//! The sans-IO half: takes bytes and `now`, returns bytes and deadlines.
