//! Decisions of the policy allocate nothing.

use std::time::Instant;

use crafter::{
    layer::Tcp,
    packet::Transport,
    policy::{Host, PacketInfo, Policy, RequestedLease, Subject, Usage, Verdict},
};

use crate::allocations::counted;

#[test]
fn deciding_packets_allocates_nothing() {
    let text = "[[rule]]\nuser = 1\n[[rule]]\nuser = 1000\nallow = ['any']\ndeny = ['10.0.0.0/8']\nburst = 500";
    let policy = Policy::parse(text).unwrap();
    let subject = Subject { user: 1000, groups: vec![1000] };
    let host = Host { addresses: vec!["192.0.2.1".parse().unwrap()], broadcasts: vec![], mtu: 1500 };
    let requested = RequestedLease {
        interface: "eth0".to_owned(),
        transport: Some(Transport::Tcp),
        address: None,
        ports: 50_000..=50_009,
        raw_ethernet: false,
        peers: None,
        observe: false,
    };
    let mut usage = Usage::default();
    let grant = policy.grant(&subject, &requested, &host, &usage).unwrap();
    // With another policy, the rule has to be found for each packet.
    let next = Policy::parse(text).unwrap();
    let packets = ["203.0.113.1:80", "10.0.0.1:80"].map(|destination| {
        Tcp::new().between("192.0.2.1:50000".parse().unwrap(), destination.parse().unwrap()).build().unwrap()
    });
    let now = Instant::now();
    let mut counts = [0, 0, 0];
    let judged = counted(|| {
        for policy in [&policy, &next] {
            for packet in packets.iter().cycle().take(1000) {
                let packet = PacketInfo::read(packet).unwrap();
                match policy.packet(&grant, &packet, &mut usage, now).verdict {
                    Verdict::Allowed => counts[0] += 1,
                    Verdict::Denied => counts[1] += 1,
                    Verdict::Rate => counts[2] += 1,
                    other => panic!("{other}"),
                }
            }
        }
    });
    assert_eq!(judged, 0);
    // Refused packets count towards the burst of 500.
    assert_eq!(counts, [250, 250, 1500]);
}
