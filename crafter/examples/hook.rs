//! A hook that drops every tenth segment of a stream: `cargo run --example hook -- eth0 192.0.2.1:80`.

use std::{env, error::Error, net::SocketAddr, time::Instant};

use crafter::{
    Crafter, LeaseRequest, Options, StreamOptions,
    engine::{Action, Direction, SegmentHook, StreamStats},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Counts segments of both directions.
struct EveryTenth(u32);

impl SegmentHook for EveryTenth {
    fn segment(&mut self, _: Instant, _: Direction, _: &mut Vec<u8>) -> Action {
        self.0 += 1;
        if self.0.is_multiple_of(10) { Action::Drop } else { Action::Pass }
    }
}

/// Fetches a page of `server` despite the dropped segments; returns the response's length and the stream's counters.
pub async fn fetch(interface: &str, server: SocketAddr) -> Result<(usize, StreamStats), Box<dyn Error>> {
    let crafter = Crafter::open(interface, Options::default()).await?;
    let lease = crafter.lease(LeaseRequest::tcp()).await?;
    let options = StreamOptions { hook: Some(Box::new(EveryTenth(0))), ..StreamOptions::default() };
    let mut stream = lease.connect(server, options).await?;
    stream.write_all(b"GET /bytes/1M HTTP/1.0\r\n\r\n").await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    Ok((response.len(), stream.stats()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(interface), Some(server)) = (arguments.next(), arguments.next()) else {
        return Err("usage: hook INTERFACE ADDRESS:PORT".into());
    };
    let (length, stats) = fetch(&interface, server.parse()?).await?;
    println!("{length} bytes; {} segments dropped, {} retransmitted", stats.hook_drops, stats.retransmissions);
    Ok(())
}
