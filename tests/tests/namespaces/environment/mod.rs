//! Changes of the host while crafter runs: interfaces change, foreign programs use the same hooks, maps and buffers are
//! full, and the process is killed or fails at any system call.

mod capacity;
mod failpoints;
mod interface;
mod programs;
mod serve_failpoints;

use std::net::SocketAddr;

use crafter::{Lease, lab::Lab};
use crafter_tests::{
    manual::ManualConnection,
    testbed::{ENDS, run},
};

/// The web server, over IPv4.
fn web() -> SocketAddr {
    SocketAddr::new(ENDS[0].1, 80)
}

/// A handshake from the lease's port, followed by a RST so that the port can be used again.
async fn handshake(lease: &Lease) {
    let mut connection = ManualConnection::new(lease, web()).await;
    connection.handshake().await;
    let rst = connection.cursor.rst();
    connection.send(&rst).await;
}

/// Runs ip(8) in the client's namespace.
fn ip(lab: &Lab, arguments: &str) {
    run(lab.client().command("ip").args(arguments.split(' ')));
}

/// Asserts that the server received one RST per handshake, and none of the kernel.
fn assert_rsts(lab: &Lab, handshakes: usize) {
    let rsts = lab.tap().segments().unwrap();
    assert_eq!(rsts.len(), handshakes, "RSTs: {rsts:?}");
    lab.tap().clear().unwrap();
}
