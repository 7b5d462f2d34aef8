//! A scan for open TCP ports: `cargo run --example scan -- 192.0.2.1 1 1024`.

use std::{env, error::Error, net::IpAddr, time::Duration};

use crafter::{
    layer::{Ip, Ipv6, Packet, Tcp},
    packet::Flags,
    session::{Session, SessionOptions, SrOptions},
};

/// Returns the ports among `ports` that answer a SYN with a SYN-ACK, in ascending order. All probes are in flight at
/// once; half-open connections are reset at the end.
pub async fn scan(host: IpAddr, ports: impl IntoIterator<Item = u16>) -> Result<Vec<u16>, Box<dyn Error>> {
    let session = Session::new(SessionOptions::default());
    let syns = ports.into_iter().map(|port| match host {
        IpAddr::V4(host) => Ip::to(host) / Tcp::to(port).flags("S"),
        IpAddr::V6(host) => Ipv6::to(host) / Tcp::to(port).flags("S"),
    });
    let options = SrOptions { timeout: Duration::from_secs(2), ..SrOptions::default() };
    let exchanged = session.sr(syns, &options).await?;
    let is_syn_ack = |packet: &Packet| {
        packet.get::<Tcp>().is_some_and(|tcp| tcp.flags.is_some_and(|flags| flags.contains(Flags::SYN | Flags::ACK)))
    };
    let open = exchanged.answered.iter().filter(|pair| is_syn_ack(&pair.reply.packet));
    let mut open: Vec<u16> = open.filter_map(|pair| pair.request.get::<Tcp>()?.dport).collect();
    open.sort_unstable();
    session.close().await;
    Ok(open)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [host, first, last] = &arguments[..] else {
        return Err("usage: scan ADDRESS FIRST LAST".into());
    };
    println!("open: {:?}", scan(host.parse()?, first.parse()?..=last.parse()?).await?);
    Ok(())
}
