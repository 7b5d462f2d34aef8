//! Fuzz targets of the parsers: no input panics or loses a byte.
//!
//! As tests they run for `CRAFTER_FUZZ_SECONDS` each (3 if unset) with random changes to known packets, texts and
//! files: built-in ones, and those of the captures that `cargo xtask setup` downloads. `cargo xtask fuzz [TARGET]
//! [--seconds N]` runs them for longer. They need neither root nor a network.

use std::{
    env, fs,
    io::{self, Read},
    net::IpAddr,
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use crafter::{
    capture::{Captured, Entry, Format, Reader, Writer},
    expr::PacketSet,
    layer::{Kind, Packet},
    packet::Transport,
    policy::{Host, Names, PacketInfo, Policy, Question, RequestedLease, Rule, SHIPPED, Subject, Usage},
};
use crafter_tests::leak::Parallel;

/// Packets that together contain every layer.
const TEXTS: &[&str] = &[
    r#"Ether(src="02:00:00:00:00:01")/IP(dst="192.0.2.1", ttl=(1,3))/TCP(dport=[80,443], flags="S", options=[("MSS",1460), ("SAckOK",None), ("Timestamp",(1,2)), ("NOP",None), ("WScale",7)])"#,
    r#"IP(dst="192.0.2.0/30", options=[])/UDP(sport=5, dport=53)/DNS(id=7, qd=[DNSQR(qname="example.org", qtype="AAAA")], an=[DNSRR(rrname="example.org.", type="A", ttl=60, rdata="192.0.2.7")])"#,
    r#"IPv6(dst="2001:db8::1")/IPv6ExtHdrHopByHop()/IPv6ExtHdrRouting()/IPv6ExtHdrFragment(m=1)/UDP(dport=9)/Raw(load=b"\x00\xff\"x")"#,
    r#"IPv6(dst="ff02::1", hlim=255)/ICMPv6ND_RA()/ICMPv6NDOptPrefixInfo(prefix="2001:db8::")/ICMPv6NDOptMTU(mtu=1280)/ICMPv6NDOptRDNSS(dns=["2001:db8::53"])"#,
    r#"IPv6(dst="ff02::1")/ICMPv6ND_NS(tgt="fe80::1")/ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:01")"#,
    r#"IP(dst="192.0.2.1")/ICMP(type=3, code=3)/IP(src="192.0.2.1")/UDP(sport=1, dport=2)"#,
    r#"IP(dst="192.0.2.1")/GRE(key=5, sequence_number=1)/IP(dst="192.0.2.9")/TCP(dport=22)/"hello""#,
    r#"Ether()/Dot1AD(vlan=5)/Dot1Q(vlan=7, prio=3)/ARP(pdst="192.0.2.1")/Padding(load="xx")"#,
    r#"IP(dst="192.0.2.1")/UDP()/VXLAN(vni=99)/Ether()/IPv6(dst="::1")/ICMPv6EchoRequest(id=1, seq=(1,2))/"ping""#,
    r#"IP(frag=5, flags="MF", proto=17, len=9, ihl=15, chksum=0)/Raw(load="x")"#,
];

/// Tokens that are significant in the text form of packets.
const WORDS: &[&str] = &[
    "(",
    ")",
    "[",
    "]",
    "/",
    ",",
    "=",
    "\"",
    "b\"\\x",
    "'",
    "IP(",
    "TCP(",
    "DNS(",
    "dst=",
    "options=",
    "None",
    "0x",
    "-1",
    "1.5",
    "18446744073709551616",
    "\"192.0.2.0/0\"",
    "(1,65535)",
    "\\",
    "\u{e4}",
    "::",
    "load=",
    "flags=\"SA\"",
    "\n",
];

/// Policies with every key.
const POLICIES: &[&str] = &[
    SHIPPED,
    r#"[[rule]]
user = ["alice", 1001]
group = "crafter"
interfaces = ["lo", "eth*"]
addresses = ["192.0.2.0/24", "2001:db8::1"]
ports = ["1024-65535", 80]
protocols = ["tcp", "udp", "icmp"]
allow = ["any", "10.0.0.0/8", { prefix = "2001:db8::/32", ports = [80, "8000-8099"] }]
deny = ["10.0.0.0/9", { prefix = "0.0.0.0/0", ports = [25] }]
packets_per_second = 1000
burst = 100
max_leases = 16
max_ports = "unlimited"
max_flows = "unlimited"
raw_ethernet = true
foreign_sources = ["203.0.113.0/24"]
observe = true
multicast = true
broadcast = true
[[rule]]
everybody = true
refuse = true
"#,
];

/// Tokens that are significant in policies.
const POLICY_WORDS: &[&str] = &[
    "[[rule]]\n",
    "user = 1000\n",
    "\"any\"",
    "\"::/0\", ",
    "\"::ffff:10.0.0.0/104\"",
    "\"0-65535\"",
    "-1",
    "1.5",
    "18446744073709551616",
    "\"unlimited\"",
    "foreign_sources = true\n",
    "refuse = false\n",
    "everybody = true\n",
    "{ prefix = \"any\", ports = [0] }, ",
    "[",
    "]",
    "{",
    "}",
    "'''",
    "\"\"\"",
    "\\u",
    "#",
    "\n",
    "\r",
    "\0",
    "\u{e4}",
];

/// A change: position, value, kind.
pub(super) type Change = (u16, u8, u8);

fn damage(bytes: &mut Vec<u8>, changes: &[Change], words: &[&str]) {
    for &(at, value, kind) in changes {
        // Half of the changes are at the start, where they have the most effect.
        let range = if kind & 0x80 != 0 { bytes.len().min(64) } else { bytes.len() };
        let at = usize::from(at) % (range + 1);
        match kind & 15 {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, value),
            2 => drop(bytes.drain(at..(at + usize::from(value)).min(bytes.len()))),
            3 => {
                let piece = bytes[at..(at + usize::from(value)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            4..=6 if !words.is_empty() => {
                bytes.splice(at..at, words[usize::from(value) % words.len()].bytes());
            }
            7 if at + 4 <= bytes.len() => bytes[at..at + 4].fill(value),
            8 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(1),
            9 if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
            _ if at < bytes.len() => bytes[at] = value,
            _ => bytes.push(value),
        }
    }
}

/// Small files of the corpora, if they were downloaded.
fn files() -> Vec<Vec<u8>> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = || set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    let Some(folder) = set("CRAFTER_CORPORA").or_else(|| Some(data()?.join("crafter/corpora"))) else {
        return Vec::new();
    };
    let mut folders = vec![folder];
    let mut paths = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { paths.push(path) }
        }
    }
    // A fixed order, so that a seed always selects the same file.
    paths.sort();
    let small = |path: &PathBuf| fs::metadata(path).is_ok_and(|metadata| metadata.len() <= 4000);
    paths.into_iter().filter(small).filter_map(|path| fs::read(path).ok()).collect()
}

fn packets() -> &'static [Captured] {
    static SEEDS: OnceLock<Vec<Captured>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let mut seeds = Vec::new();
        for text in TEXTS {
            for packet in PacketSet::parse(text).unwrap().packets(100).unwrap().take(2) {
                seeds.push(Captured::of(packet.layers()[0].kind(), packet.build().unwrap()));
            }
        }
        for file in files() {
            let Ok(reader) = Reader::new(&file[..]) else { continue };
            seeds.extend(reader.filter_map(Result::ok).filter(|seed| seed.packet().layers().len() > 1).take(3));
        }
        seeds
    })
}

fn captures() -> &'static [Vec<u8>] {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let mut seeds = files();
        for format in [Format::Pcap, Format::PcapNg] {
            let mut writer = Writer::new(Vec::new(), format).unwrap();
            for packet in packets().iter().filter(|packet| packet.first == Kind::Ip).take(5) {
                let entry = Entry { comment: Some("a comment"), interface: Some("eth0"), ..packet.entry() };
                writer.write(&entry).unwrap();
            }
            seeds.push(writer.finish().unwrap());
        }
        seeds
    })
}

pub(super) fn seconds() -> Duration {
    let seconds = env::var("CRAFTER_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

/// Checks that the text form of a packet builds the same bytes.
fn same_text(packet: &Packet, bytes: &[u8]) {
    let text = packet.to_string();
    let set = PacketSet::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let read = set.packets(1).unwrap_or_else(|error| panic!("{error}: {text}")).next().expect("a packet");
    let built = read.build().unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(built, bytes, "{text}");
}

#[test]
fn layers() {
    let _parallel = Parallel::begin();
    bolero::check!().with_type::<(u16, u8, Vec<Change>)>().with_test_time(seconds()).for_each(
        |(seed, kind, changes)| {
            let seeds = packets();
            let mut captured = seeds[usize::from(*seed) % seeds.len()].clone();
            damage(&mut captured.bytes, &changes[..changes.len() % 9], &[]);
            let bytes = &captured.bytes;
            for kind in Kind::ALL {
                let packet = Packet::parse(*kind, bytes);
                assert_eq!(packet.build().unwrap(), *bytes, "{packet}");
            }
            let any = Packet::parse(Kind::ALL[usize::from(*kind) % Kind::ALL.len()], bytes);
            for packet in [any, captured.packet()] {
                assert_eq!(packet.build().unwrap(), *bytes, "{packet}");
                packet.show().unwrap();
                packet.hexdump().unwrap();
                packet.layout().unwrap();
                packet.summary();
                serde_json::to_string(&packet.to_json().unwrap()).unwrap();
                if !bytes.is_empty() {
                    same_text(&packet, bytes);
                }
            }
        },
    );
}

#[test]
fn text() {
    let _parallel = Parallel::begin();
    bolero::check!().with_type::<(u16, Vec<Change>)>().with_test_time(seconds()).for_each(|(seed, changes)| {
        let seeds = TEXTS.len() + packets().len();
        let seed = usize::from(*seed) % seeds;
        let text = match TEXTS.get(seed) {
            Some(text) => (*text).to_owned(),
            None => packets()[seed - TEXTS.len()].packet().to_string(),
        };
        let mut bytes = text.into_bytes();
        damage(&mut bytes, &changes[..changes.len() % 9], WORDS);
        let text = String::from_utf8_lossy(&bytes);
        let set = match PacketSet::parse(&text) {
            Ok(set) => set,
            Err(error) => return assert!(!error.to_string().is_empty()),
        };
        let Ok(packets) = set.packets(1 << 40) else { return };
        for packet in packets.take(5) {
            // Building fails if a value does not fit its field.
            if let Ok(bytes) = packet.build() {
                same_text(&packet, &bytes);
            }
        }
    });
}

/// A reader that returns at most a given number of bytes at a time.
struct Chunks<'b>(&'b [u8], usize);

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.1);
        self.0.read(&mut buffer[..length])
    }
}

#[test]
fn capture_files() {
    let _parallel = Parallel::begin();
    bolero::check!().with_type::<(u16, u8, Vec<Change>)>().with_test_time(seconds()).for_each(
        |(seed, drop, changes)| {
            let seeds = captures();
            let mut bytes = seeds[usize::from(*seed) % seeds.len()].clone();
            damage(&mut bytes, &changes[..changes.len() % 9], &[]);
            let whole = Reader::new(&bytes[..]).map(Iterator::collect::<Vec<_>>);
            let chunks = Reader::new(Chunks(&bytes, usize::from(*drop) + 1)).map(Iterator::collect::<Vec<_>>);
            assert_eq!(format!("{whole:?}"), format!("{chunks:?}"), "the result depends on the chunk size");
            let Ok(whole) = whole else { return };
            let errors = whole.iter().filter(|captured| captured.is_err()).count();
            assert!(errors == 0 || errors == 1 && whole.last().is_some_and(Result::is_err));
            let mut writer = Writer::new(Vec::new(), Format::PcapNg).unwrap();
            let mut written = Vec::new();
            for captured in whole.into_iter().flatten() {
                assert_eq!(captured.packet().build().unwrap(), captured.bytes);
                if writer.write(&captured.entry()).is_ok() {
                    written.push(captured.bytes);
                }
            }
            let file = writer.finish().unwrap();
            let again: Vec<_> = Reader::new(&file[..]).unwrap().map(|captured| captured.unwrap().bytes).collect();
            assert_eq!(written, again);
        },
    );
}

struct Alice;

impl Names for Alice {
    fn user(&self, name: &str) -> crafter::Result<Option<u32>> {
        Ok((name == "alice").then_some(1000))
    }

    fn group(&self, name: &str) -> crafter::Result<Option<u32>> {
        Ok((name == "crafter").then_some(200))
    }
}

/// Checks an allowed packet against the rule's lists, without the policy's own search.
fn assert_allowed(rule: &Rule, own: &[IpAddr], packet: &PacketInfo) {
    let destination = packet.destination.to_canonical();
    let mut denied = rule.deny.list().iter().filter(|target| target.ports.is_none());
    assert!(!denied.any(|target| target.prefix.contains(&destination)), "{packet:?}");
    assert!(rule.multicast || !destination.is_multicast(), "{packet:?}");
    let source = packet.source.to_canonical();
    assert!(own.contains(&source) || rule.foreign_sources.allows(source), "{packet:?}");
}

#[test]
fn policy() {
    let _parallel = Parallel::begin();
    let now = Instant::now();
    let host = Host {
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        broadcasts: vec!["192.0.2.255".parse().unwrap()],
        mtu: 1500,
    };
    bolero::check!().with_type::<(u16, Vec<Change>, u16, Vec<Change>)>().with_test_time(seconds()).for_each(
        |(seed, changes, packet, harm)| {
            let mut text = POLICIES[usize::from(*seed) % POLICIES.len()].as_bytes().to_vec();
            damage(&mut text, &changes[..changes.len() % 9], POLICY_WORDS);
            let policy = match Policy::load(&String::from_utf8_lossy(&text), &Alice) {
                Ok(policy) => policy,
                Err(error) => return assert!(!error.to_string().is_empty()),
            };
            policy.warnings();
            let mut bytes = packets()[usize::from(*packet) % packets().len()].bytes.clone();
            damage(&mut bytes, &harm[..harm.len() % 9], &[]);
            let subject = Subject { user: 1000, groups: vec![1000, 200] };
            for transport in [Transport::Tcp, Transport::Udp, Transport::Icmp] {
                let requested = RequestedLease {
                    interface: "eth0".to_owned(),
                    transport: Some(transport),
                    address: None,
                    ports: 1024..=2000,
                    raw_ethernet: seed % 3 == 0,
                    peers: None,
                    observe: false,
                };
                let mut usage = Usage::default();
                usage.ports = u32::from(*packet);
                let Ok(grant) = policy.grant(&subject, &requested, &host, &usage) else { continue };
                policy.frame(&grant, &bytes, &mut usage, now);
                let Some(outgoing) = PacketInfo::read(&bytes) else { continue };
                if policy.packet(&grant, &outgoing, &mut usage, now).is_allowed() {
                    assert_allowed(policy.rule_of(&subject).unwrap(), grant.sources(), &outgoing);
                }
                let question = Question {
                    interface: None,
                    source: Some(outgoing.source),
                    source_port: None,
                    destination: outgoing.destination,
                    port: Some(*packet),
                    transport,
                    addresses: host.addresses.clone(),
                    broadcasts: host.broadcasts.clone(),
                };
                assert!(!policy.explain(&subject, &question).sentence.is_empty());
            }
        },
    );
}
