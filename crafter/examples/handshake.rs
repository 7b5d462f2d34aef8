//! A TCP handshake by hand: `cargo run --example handshake -- eth0 192.0.2.1:80`.

use std::{env, error::Error, net::SocketAddr, time::Duration};

use crafter::{Crafter, LeaseRequest, Options, engine::Cursor, packet::Segment};

/// Performs a handshake with `server`, resets the connection, and returns the server's SYN-ACK.
pub async fn handshake(interface: &str, server: SocketAddr) -> Result<Segment, Box<dyn Error>> {
    let crafter = Crafter::open(interface, Options::default()).await?;
    let lease = crafter.lease(LeaseRequest::tcp()).await?;
    // The cursor computes the numbers of the next segment.
    let mut cursor = Cursor::new(lease.local(server.ip()).await?, server);
    lease.send(&cursor.syn().build()).await?;
    let received = lease.recv_timeout(Duration::from_secs(3)).await?.ok_or("no answer within 3 s")?;
    let answer = Segment::parse(&received.ip)?;
    cursor.handle(&answer);
    if !cursor.is_established() {
        return Err(format!("not a SYN-ACK: {answer}").into());
    }
    lease.send(&cursor.ack().build()).await?;
    lease.send(&cursor.rst().build()).await?;
    Ok(answer)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(interface), Some(server)) = (arguments.next(), arguments.next()) else {
        return Err("usage: handshake INTERFACE ADDRESS:PORT".into());
    };
    println!("{}", handshake(&interface, server.parse()?).await?);
    Ok(())
}
