//! Runs each example against the lab's servers, and checks that no RST of the kernel reaches them.

use std::{error::Error, net::SocketAddr};

use crafter::{
    lab::{INTERFACE, Lab, LabOptions, SERVER_V4, SERVER_V6},
    layer::Dns,
    packet::Flags,
};
use crafter_tests::within;

#[allow(dead_code, reason = "its function main")]
#[path = "../../examples/dns.rs"]
mod dns;
#[allow(dead_code, reason = "its function main")]
#[path = "../../examples/handshake.rs"]
mod handshake;
#[allow(dead_code, reason = "its function main")]
#[path = "../../examples/hook.rs"]
mod hook;
#[allow(dead_code, reason = "its function main")]
#[path = "../../examples/scan.rs"]
mod scan;
#[allow(dead_code, reason = "its function main")]
#[path = "../../examples/stream.rs"]
mod stream;

fn lab() -> Lab {
    Lab::new(&LabOptions::default()).expect("a lab")
}

/// Runs an example in the client's namespace; returns its result.
#[track_caller]
fn run<T: Send>(lab: &Lab, example: impl AsyncFnOnce() -> Result<T, Box<dyn Error>> + Send) -> T {
    let result = within(lab.client(), async || example().await.map_err(|error| error.to_string()));
    result.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn handshake() {
    let lab = lab();
    for server in [SocketAddr::from((SERVER_V4, 80)), SocketAddr::from((SERVER_V6, 80))] {
        let answer = run(&lab, async || handshake::handshake(INTERFACE, server).await);
        assert_eq!((answer.source, answer.flags), (server, Flags::SYN | Flags::ACK));
    }
    // Only the example's own RSTs, one per server.
    let resets = lab.tap().segments().expect("the tap");
    assert_eq!(resets.len(), 2, "{resets:?}");
}

#[test]
fn dns_query() {
    let lab = lab();
    let answer = run(&lab, async || dns::ask(INTERFACE, SERVER_V4.into(), "www.lab.test").await);
    let dns = answer.get::<Dns>().expect("a DNS message");
    assert_eq!((dns.qr, dns.ancount), (Some(1), Some(2)), "{}", answer.summary());
}

#[test]
fn scan_finds_open_ports() {
    let lab = lab();
    assert_eq!(run(&lab, async || scan::scan(SERVER_V4.into(), 1..=200).await), [53, 80]);
    assert_eq!(run(&lab, async || scan::scan(SERVER_V6.into(), 70..=90).await), [80]);
}

#[test]
fn page_over_a_stream() {
    let lab = lab();
    let response = run(&lab, async || stream::fetch(INTERFACE, (SERVER_V4, 80).into(), "/bytes/100k").await);
    let response = String::from_utf8_lossy(&response);
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(response.len() > 100_000, "{}", response.len());
    assert_eq!(lab.tap().segments().expect("the tap"), []);
}

#[test]
fn hook_drops_segments() {
    let lab = lab();
    let (length, stats) = run(&lab, async || hook::fetch(INTERFACE, (SERVER_V4, 80).into()).await);
    assert!(length > 1 << 20, "{length}");
    assert!(stats.hook_drops > 0, "{stats:?}");
}
