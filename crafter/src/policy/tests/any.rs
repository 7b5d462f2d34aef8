//! Properties for any text and any packet.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// Destinations that match the prefixes below.
pub fn destination() -> impl Strategy<Value = IpAddr> {
    select(vec!["10.1.2.3", "10.1.2.4", "10.2.0.1", "11.0.0.1", "224.0.0.1", "192.0.2.255", "2001:db8:1::1", "ff02::1"])
        .prop_map(|address| address.parse().expect("an address"))
}

fn target() -> impl Strategy<Value = String> {
    let prefixes = vec!["any", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "0.0.0.0/1", "2001:db8::/32", "ff00::/8"];
    (select(prefixes), proptest::option::of(23u16..28)).prop_map(|(prefix, port)| match port {
        None => format!("'{prefix}'"),
        Some(port) => format!("{{ prefix = '{prefix}', ports = [{port}] }}"),
    })
}

fn targets(key: &'static str) -> impl Strategy<Value = String> {
    vec(target(), 0..5).prop_map(move |targets| format!("{key} = [{}]", targets.join(", ")))
}

/// Keys of a rule, in any order.
pub fn keys() -> impl Strategy<Value = String> {
    let flags = select(vec![
        "refuse = true",
        "ports = ['50000-50001']",
        "addresses = ['192.0.2.0/24', '2001:db8::/32']",
        "interfaces = ['eth*']",
        "protocols = ['udp']",
        "protocols = ['any']",
        "foreign_sources = true",
        "foreign_sources = ['192.0.2.8/29']",
        "multicast = true",
        "broadcast = true",
    ])
    .prop_map(str::to_owned);
    let line = prop_oneof![2 => flags, 2 => targets("allow"), 2 => targets("deny")];
    vec(line, 0..5).prop_map(|lines| {
        let mut seen = Vec::new();
        let mut text = String::new();
        for line in lines {
            let key = line.split(' ').next().unwrap_or_default().to_owned();
            if !seen.contains(&key) {
                text += &format!("{line}\n");
                seen.push(key);
            }
        }
        text
    })
}

fn word() -> impl Strategy<Value = String> {
    let words = vec![
        "[[rule]]",
        "[rule]",
        "\n",
        " = ",
        "user",
        "group",
        "everybody",
        "refuse",
        "ports",
        "allow",
        "deny",
        "true",
        "[",
        "]",
        "{",
        "}",
        ",",
        "'any'",
        "'10.0.0.0/8'",
        "'80-90'",
        "80",
        "-1",
        "'",
        "\"",
        "'unlimited'",
        "1.5",
        "1979-05-27",
        "packets_per_second",
        "foreign_sources",
        "prefix",
        "\u{e4}",
        "#",
        "\\",
        "inf",
        "0x10",
        "addresses",
        "interfaces",
    ];
    prop_oneof![8 => select(words).prop_map(str::to_owned), 1 => "\\PC{0,6}"]
}

/// Judges packets and frames of any bytes for a granted lease.
fn ask_all(policy: &Policy, bytes: &[u8]) {
    let mut usage = Usage::default();
    let _ = (policy.warnings(), policy.observe(&alice()));
    let Ok(grant) = policy.grant(&alice(), &requested(), &host(), &usage) else { return };
    if let Some(packet) = PacketInfo::read(bytes) {
        policy.packet(&grant, &packet, &mut usage, Instant::now());
    }
    policy.frame(&grant, bytes, &mut usage, Instant::now());
}

proptest! {
    // Four of five destinations are not in the denied target, so the default of 1,024 rejects is too low.
    #![proptest_config(ProptestConfig { max_global_rejects: 65_536, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(words in vec(word(), 0..40), bytes in vec(any::<u8>(), 0..100)) {
        match Policy::load(&words.concat(), &Host4) {
            Ok(policy) => ask_all(&policy, &bytes),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn no_damage_to_the_shipped_text_panics(at in 0usize..2000, with in word(), cut in 0usize..30) {
        let mut text: Vec<char> = SHIPPED.chars().collect();
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, with.chars());
        let text: String = text.into_iter().collect();
        if let Ok(policy) = Policy::load(&text, &Host4) {
            ask_all(&policy, &[0x45]);
        }
    }

    #[test]
    fn no_packet_panics(mut bytes in vec(any::<u8>(), 1..120), v6 in any::<bool>(), keys in keys()) {
        bytes[0] = if v6 { 0x60 } else { 0x45 + (bytes[0] & 7) };
        let policy = rule(&(keys.replace("refuse = true", "") + "raw_ethernet = true\n"));
        ask_all(&policy, &bytes);
        let _ = policy.frame(&policy.grant(
            &alice(), &RequestedLease { raw_ethernet: true, transport: Some(Transport::Udp), ..requested() }, &Host::default(), &Usage::default(),
        ).map_err(|decision| TestCaseError::reject(decision.to_string()))?, &bytes, &mut Usage::default(), Instant::now());
    }

    /// The policy and the kernel half read the same fields.
    #[test]
    fn packets_are_read_as_by_the_kernel_half(
        mut bytes in vec(any::<u8>(), 1..90), v6 in any::<bool>(),
        protocols in vec(select(vec![0u8, 1, 6, 6, 17, 17, 43, 44, 58, 60, 139]), 2), tags in vec(select(vec![0x8100u16, 0x88a8, 0x9100]), 0..4),
    ) {
        use crafter_common::parse::{self, Fragment, Icmp};
        bytes[0] = if v6 { 0x60 } else { 0x45 + (bytes[0] & 3) };
        let length = bytes.len();
        let declared = if v6 { length.saturating_sub(40) } else { length } as u16;
        for (at, byte) in [(if v6 { 6 } else { 9 }, protocols[0]), (40, protocols[1]), (41, 0)] {
            bytes.get_mut(at).into_iter().for_each(|field| *field = byte);
        }
        let at = if v6 { 4 } else { 2 };
        bytes.get_mut(at..at + 2).into_iter().for_each(|field| field.copy_from_slice(&declared.to_be_bytes()));
        // Segments left, flags and fragment offset: rarely.
        if bytes[0] & 1 == 1 && let Some(field) = bytes.get_mut(if v6 { 42..44 } else { 6..8 }) {
            field.fill(0);
        }

        let net = parse::network(&bytes[..], 0, v6).ok();
        let outgoing = PacketInfo::read(&bytes);
        prop_assert!(net.is_some() || outgoing.is_none());
        if let (Some(net), Some(outgoing)) = (net, outgoing) {
            let (source, destination) = net.addresses(&bytes[..]).expect("addresses");
            let seen = [source, destination].map(|address| crate::packet::ip::address(address, v6));
            prop_assert_eq!(seen, [outgoing.source, outgoing.destination]);
            let later = net.fragment == Fragment::Later;
            let ports = match parse::ports(&bytes[..], net.transport).filter(|_| parse::has_ports(net.protocol)) {
                _ if later && (parse::has_ports(net.protocol) || parse::is_icmp(&net)) => PacketPorts::Fragment,
                Some((source, destination)) => PacketPorts::Both {
                    source: u16::from_be_bytes(source), destination: u16::from_be_bytes(destination),
                },
                None => match parse::icmp(&bytes[..], &net).filter(|_| parse::is_icmp(&net) && !later) {
                    Some(Icmp::Query { id }) => PacketPorts::Query { identifier: u16::from_be_bytes(id) },
                    _ => PacketPorts::None,
                },
            };
            prop_assert_eq!(outgoing.ports, ports);
            prop_assert!(net.left == 0 || outgoing.route != Route::None);
        }

        // If everything is denied, no frame with an IP packet is allowed, whatever its VLAN tags.
        let policy = rule("raw_ethernet = true\nmulticast = true\nbroadcast = true\nprotocols = ['any']\ndeny = ['any']");
        let mut usage = Usage::default();
        let requested = RequestedLease { raw_ethernet: true, ..requested() };
        let grant = policy.grant(&alice(), &requested, &host(), &usage).expect("a lease");
        let mut frame = vec![2; 12];
        for tag in tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 5]);
        }
        frame.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(&bytes);
        prop_assert!(!policy.frame(&grant, &frame, &mut usage, Instant::now()).is_allowed());
    }

    #[test]
    fn a_denied_destination_is_never_allowed(
        keys in keys(), deny in target(), more in vec(target(), 0..4), place in 0usize..5, first in any::<bool>(),
        destination in destination(), port in 23u16..28,
    ) {
        // Whether the denied target contains the destination, without using the policy.
        let prefix = deny.split('\'').nth(1).unwrap_or_default();
        let covers = match prefix {
            "any" => true,
            prefix => prefix.parse::<ipnet::IpNet>().map_or(prefix == destination.to_string(), |net| net.contains(&destination)),
        };
        let ports: Option<u16> = deny.split(['[', ']']).nth(1).and_then(|port| port.parse().ok());
        prop_assume!(covers && ports.is_none_or(|only| only == port));
        let mut all = more;
        all.insert(place.min(all.len()), deny);
        let denied = format!("deny = [{}]\n", all.join(", "));
        let rest: String = keys.lines().filter(|line| !line.starts_with("deny")).map(|line| format!("{line}\n")).collect();
        let policy = rule(&if first { denied + &rest } else { rest + &denied });
        let source = if destination.is_ipv4() { "192.0.2.1:50000" } else { "[2001:db8::1]:50000" };
        let mut usage = Usage::default();
        let requested = RequestedLease { ports: 50_000..=50_000, ..requested() };
        if let Ok(grant) = policy.grant(&alice(), &requested, &host(), &usage) {
            let packet = tcp(source, &std::net::SocketAddr::new(destination, port).to_string());
            prop_assert!(!policy.packet(&grant, &packet, &mut usage, Instant::now()).is_allowed());
        }
    }
}
