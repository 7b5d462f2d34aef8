//! Time of a policy decision for a packet: with the shipped policy, with 1,000 rules, and with 10,000 prefixes.
//!
//!     cargo bench -p crafter --bench policy_rate

use std::{fmt::Write as _, hint::black_box, net::Ipv4Addr, time::Instant};

use crafter::{
    packet::{IpOptions, PacketPorts, Route, Transport},
    policy::{Host, PacketInfo, Policy, RequestedLease, SHIPPED, Subject, Usage},
};

const COUNT: u32 = 5_000_000;

/// The user that the last rule names.
const USER: u32 = 5000;

fn main() -> crafter::Result<()> {
    measure("shipped, as root", SHIPPED.replace("\"root\"", &USER.to_string()))?;
    let mut rules = String::new();
    for user in 0..999 {
        let _ = writeln!(rules, "[[rule]]\nuser = {user}\nallow = [\"10.0.0.0/8\"]\ndeny = [\"10.1.0.0/16\"]");
    }
    let limits = "packets_per_second = 1000000000\nburst = 1000000000\n";
    measure("1,000 rules", format!("{rules}[[rule]]\nuser = {USER}\n{limits}"))?;
    let list = |base: u32, step: u32| {
        let prefixes = (0..5000).map(|i| format!("\"{}/28\"", Ipv4Addr::from(base + i * step)));
        prefixes.collect::<Vec<_>>().join(", ")
    };
    let prefixes = format!("allow = [\"any\", {}]\ndeny = [{}]\n", list(10 << 24, 16), list(11 << 24, 32));
    measure("1,000 rules, 10,000 prefixes", format!("{rules}[[rule]]\nuser = {USER}\n{limits}{prefixes}"))?;
    // Each prefix inside the previous one, with its own ports: the longest search.
    let nested =
        |port: u16| (1..=32).map(move |length| format!("{{ prefix = \"0.0.0.0/{length}\", ports = [{port}] }}"));
    let nested = nested(25).collect::<Vec<_>>().join(", ");
    measure("32 nested prefixes", format!("[[rule]]\nuser = {USER}\n{limits}deny = [{nested}]\n"))
}

fn measure(name: &str, text: String) -> crafter::Result<()> {
    let begin = Instant::now();
    let policy = Policy::parse(&text)?;
    let parsed = begin.elapsed();
    let subject = Subject { user: USER, groups: vec![USER] };
    let host = Host { addresses: vec![Ipv4Addr::new(192, 0, 2, 1).into()], broadcasts: vec![], mtu: 1500 };
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
    let grant = policy
        .grant(&subject, &requested, &host, &usage)
        .map_err(|decision| crafter::Error::invalid("policy", decision))?;
    let now = Instant::now();
    let mut allowed = 0_u32;
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            for i in 0..COUNT {
                // Alternates between addresses of 10.0.0.0/7 and 0.0.0.0/7.
                let base = if i & 1 == 0 { 10 << 24 } else { 1 };
                let destination = Ipv4Addr::from(base + i.wrapping_mul(2_654_435_761) % (1 << 17));
                let packet = PacketInfo {
                    source: Ipv4Addr::new(192, 0, 2, 1).into(),
                    destination: destination.into(),
                    transport: Some(Transport::Tcp),
                    ports: PacketPorts::Both { source: 50_000, destination: 80 },
                    route: Route::None,
                    options: IpOptions::Harmless,
                    length: 60,
                };
                allowed += u32::from(policy.packet(&grant, black_box(&packet), &mut usage, now).is_allowed());
            }
            start.elapsed()
        })
        .min()
        .unwrap_or_default();
    let share = f64::from(allowed) / f64::from(COUNT) / 5.0 * 100.0;
    let nanos = best.as_nanos() as f64 / f64::from(COUNT);
    println!("{name:<30} {nanos:>6.1} ns per packet, {share:.0}% allowed; parsed in {parsed:.1?}");
    Ok(())
}
