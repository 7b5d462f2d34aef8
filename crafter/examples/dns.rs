//! A DNS query in a crafted datagram: `cargo run --example dns -- eth0 192.0.2.1 www.example.org`.

use std::{env, error::Error, net::IpAddr, time::Duration};

use crafter::{
    Crafter, LeaseRequest, Options,
    layer::{Dns, Kind, Packet},
    packet::Datagram,
};

/// Queries `server` for the IPv4 addresses of `name`; returns the reply.
pub async fn ask(interface: &str, server: IpAddr, name: &str) -> Result<Packet, Box<dyn Error>> {
    let crafter = Crafter::open(interface, Options::default()).await?;
    let lease = crafter.lease(LeaseRequest::udp()).await?;
    // 1 is the type A. Layers compute unset fields, such as the counts of the header.
    let question = Packet::from(Dns::query(name, 1)).build()?;
    let from = lease.local(server).await?;
    lease.send(&Datagram::new(from, (server, 53).into(), question).build()).await?;
    let received = lease.recv_timeout(Duration::from_secs(3)).await?.ok_or("no answer within 3 s")?;
    Ok(Packet::parse(Kind::Dns, &Datagram::parse(&received.ip)?.payload))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [interface, server, name] = &arguments[..] else {
        return Err("usage: dns INTERFACE SERVER NAME".into());
    };
    println!("{}", ask(interface, server.parse()?, name).await?.show()?);
    Ok(())
}
