//! Rate of building and parsing packets on one core: Ethernet/IP/TCP with the options of a SYN.
//!
//!     cargo bench -p crafter --bench layer_rate

use std::{hint::black_box, time::Instant};

use crafter::layer::{Ether, Ip, Kind, Packet, Tcp, TcpOption};

const COUNT: u32 = 5_000_000;

/// Prints the best of five runs, because other programs use the machine too.
fn rate(name: &str, mut work: impl FnMut(u32)) {
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            (0..COUNT).for_each(&mut work);
            start.elapsed()
        })
        .min()
        .unwrap_or_default();
    println!("{name:<32} {:>6.2} million/s", f64::from(COUNT) / best.as_secs_f64() / 1e6);
}

fn main() -> crafter::Result<()> {
    let options =
        [TcpOption::Mss(1460), TcpOption::SackOk, TcpOption::Timestamp(1, 0), TcpOption::Nop, TcpOption::WScale(7)];
    let mut packet = Ether::new() / Ip::to("192.0.2.2").src("192.0.2.1") / Tcp::to(80).options(options);
    let mut out = Vec::with_capacity(2048);
    rate("build, source port edited", |i| {
        if let Some(tcp) = packet.get_mut::<Tcp>() {
            tcp.sport = Some(i as u16);
        }
        black_box(packet.build_into(&mut out)).unwrap_or_default();
        black_box(&out);
    });
    let bytes = packet.build()?;
    let mut read = Packet::new();
    rate("parse into a reused packet", |_| {
        read.parse_into(Kind::Ether, black_box(&bytes));
        black_box(&read);
    });
    rate("parse into a new packet", |_| {
        black_box(Packet::from_ethernet(black_box(&bytes)));
    });
    Ok(())
}
