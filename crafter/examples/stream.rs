//! A web page over a TCP stream of crafted segments: `cargo run --example stream -- eth0 192.0.2.1:80 /`.

use std::{env, error::Error, net::SocketAddr};

use crafter::{Crafter, LeaseRequest, Options, StreamOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Fetches `path` from `server`; returns the response, head and body.
pub async fn fetch(interface: &str, server: SocketAddr, path: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let crafter = Crafter::open(interface, Options::default()).await?;
    let lease = crafter.lease(LeaseRequest::tcp()).await?;
    let mut stream = lease.connect(server, StreamOptions::default()).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.ip());
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    // Send FIN and wait until both sides have closed, so that nothing is left for the kernel to reset.
    stream.shutdown().await?;
    stream.closed().await?;
    Ok(response)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [interface, server, path] = &arguments[..] else {
        return Err("usage: stream INTERFACE ADDRESS:PORT PATH".into());
    };
    print!("{}", String::from_utf8_lossy(&fetch(interface, server.parse()?, path).await?));
    Ok(())
}
