//! What a host does around crafter: its interfaces change, other programs come and go at the same hooks, rooms are full,
//! and the owner dies at any moment of its life.

mod interface;
mod points;
mod programs;
mod room;
mod serve_points;

use std::net::SocketAddr;

use crafter::{Lease, lab::Lab};
use crafter_tests::{
    by_hand::ByHand,
    stage::{ENDS, run},
};

/// The server's web server, over IPv4.
fn web() -> SocketAddr {
    SocketAddr::new(ENDS[0].1, 80)
}

/// A handshake from the lease's port, reset at its end so that the port can be used again.
async fn handshake(lease: &Lease) {
    let mut talk = ByHand::new(lease, web()).await;
    talk.handshake().await;
    let rst = talk.cursor.rst();
    talk.send(&rst).await;
}

/// `ip ...` in the client's namespace.
fn ip(lab: &Lab, arguments: &str) {
    run(lab.client().command("ip").args(arguments.split(' ')));
}

/// The server has seen so many RSTs: those of handshakes, and none of the kernel's.
fn assert_rsts(lab: &Lab, handshakes: usize) {
    let rsts = lab.tap().segments().unwrap();
    assert_eq!(rsts.len(), handshakes, "RSTs: {rsts:?}");
    lab.tap().clear().unwrap();
}
