//! Reading and building packets: bytes in, bytes out, no IO.
