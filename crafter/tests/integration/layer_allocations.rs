//! Building into a reused buffer allocates nothing.

use crafter::layer::{Ether, Ip, Kind, Packet, Tcp, TcpOption};

use crate::allocations::counted;

#[test]
fn building_into_a_reused_buffer_allocates_nothing() {
    let options =
        [TcpOption::Mss(1460), TcpOption::SackOk, TcpOption::Timestamp(1, 0), TcpOption::Nop, TcpOption::WScale(7)];
    let mut packet = Ether::new() / Ip::to("192.0.2.2") / Tcp::to(80).options(options) / "data";
    let mut out = Vec::with_capacity(2048);
    let built = counted(|| {
        for port in 0..1000 {
            packet.get_mut::<Tcp>().unwrap().sport = Some(port);
            packet.build_into(&mut out).unwrap();
        }
    });
    assert_eq!(built, 0);
    assert_eq!(Packet::from_ethernet(&out).get::<Tcp>().unwrap().sport, Some(999));

    // Options and payload are owned, so reading into the same packet again makes two allocations.
    let mut read = Packet::new();
    read.parse_into(Kind::Ether, &out);
    let parsed = counted(|| {
        for _ in 0..1000 {
            read.parse_into(Kind::Ether, &out);
        }
    });
    assert_eq!(parsed, 2000);
}
