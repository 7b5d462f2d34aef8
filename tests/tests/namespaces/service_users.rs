//! Users without any privilege, with a service between them and the wire: the whole story, two who wish for the same,
//! what one sees of the other, and when ports are free again.

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::{ChildStdin, ChildStdout, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use crafter::{
    Error,
    datapath::{
        frames::{FrameSender, Outlet},
        interface::interface,
    },
    lab::{CLIENT_V4, INTERFACE, NetNs, SERVER_V4, SERVER_V6},
    protocol::wire::{
        CountersCall, InterfacesCall, LeaseCall, ListFlowsCall, ListLeasesCall, MonitorCall, ReleaseCall, ReloadCall,
    },
};
use crafter_tests::exit;
use crafter_tests::{
    by_hand::sha256,
    frame::{self, ACK, RST, SYN, Tcp},
    judge::{CONTROL, Capture},
    leak::Parallel,
    peer::{Dnsmasq, HOST, Nginx, Process, wait_for},
    service::{self, NOBODY, PATIENCE, Service, Socket, Who},
    stage::{CONTROL_PORT, ENDS, lab, run, unowned_syn, wait_for_rst},
    wire::mac,
    within,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Two users with rules of their own, a third one who may look on, and the group of [`NOBODY`].
const POLICY: &str = "\
[[rule]]
user = 0
observe = true

[[rule]]
user = 71001
ports = [\"50000-50999\"]
max_ports = 200

[[rule]]
user = 71002
ports = [\"50000-51999\"]
max_ports = 200

[[rule]]
user = 71003
observe = true

[[rule]]
group = 54321
packets_per_second = \"unlimited\"
";

const ONE: Who = Who { user: 71_001, group: 71_001 };
const TWO: Who = Who { user: 71_002, group: 71_002 };
const OBSERVER: Who = Who { user: 71_003, group: 71_003 };

/// A running `tenant`.
struct Tenant {
    process: Process,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    lease: u64,
}

impl Tenant {
    fn start(service: &Service, who: Who, protocol: &str, first: u16, last: u16, more: &[&str]) -> Self {
        let binary = service.place(env!("CARGO_BIN_EXE_tenant").as_ref());
        let mut command = service.namespace().command(binary);
        command.arg(&service.socket).args([INTERFACE, protocol, &first.to_string(), &last.to_string()]).args(more);
        service::drop_to(&mut command, who);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tenant");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("its output"));
        let mut tenant = Self { process: Process(child), stdin, lines: BufReader::new(stdout), lease: 0 };
        tenant.lease = tenant.says("ready ").parse().expect("a number");
        tenant
    }

    /// The rest of its next line, which has to begin so.
    #[track_caller]
    fn says(&mut self, prefix: &str) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("its output");
        line.trim_end().strip_prefix(prefix).unwrap_or_else(|| panic!("no {prefix:?}: {line:?}")).to_owned()
    }

    /// Lets it end; what it read, what of that was not its own, what was no packet, what was lost.
    fn end(mut self) -> [u64; 4] {
        drop(self.stdin.take());
        let said = self.says("read ");
        let numbers: Vec<u64> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().expect("four numbers")
    }
}

fn udp(port: u16) -> LeaseCall {
    LeaseCall {
        interface: Some(INTERFACE.to_owned()),
        protocol: "udp".to_owned(),
        port: Some(port.into()),
        ..LeaseCall::default()
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn the_whole_story_of_an_unprivileged_user() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let nginx = Nginx::with(lab.server(), Some(10_000_000));
    let _dnsmasq = Dnsmasq::start(lab.server());
    let service = Service::start(lab.client(), POLICY);

    let mut status = lab.client().command("cat");
    service::drop_to(status.arg("/proc/self/status"), NOBODY);
    let status = run(&mut status);
    for line in ["Uid:\t65534\t65534\t65534\t65534", "Gid:\t54321\t54321\t54321\t54321", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "no {line:?}: {status}");
    }

    let capture = Capture::start(lab.server(), INTERFACE, Some(CONTROL));
    // Connections that the commands say to have reset.
    let mut reset = 0;
    for server in [IpAddr::from(SERVER_V4), SERVER_V6.into()] {
        let layer = if server.is_ipv4() { "IP" } else { "IPv6" };
        let syn = |ports: &str| format!("{layer}(dst=\"{server}\")/TCP(dport={ports}, flags=\"S\")");
        let answer = json(&service.succeed(NOBODY, &["sr1", "--json", &syn("80")]));
        assert!(answer.to_string().contains("\"SA\""), "{answer}");
        let answers = json(&service.succeed(NOBODY, &["sr", "--json", &syn("[80,81,82]")]));
        let answered = answers["answered"].as_array().map(Vec::len);
        assert_eq!(answered, Some(3), "{answers}");
        reset += [&answer, &answers]
            .map(|each| each["account"]["half_open_reset"].as_u64().expect("a count"))
            .iter()
            .sum::<u64>();
        let text = service.succeed(NOBODY, &["ping", "--json", "-c", "3", "--interval", "0.05", &server.to_string()]);
        assert_eq!(json(&text)["received"], 3, "{text}");
        for way in ["--icmp", "--udp"] {
            service.succeed(NOBODY, &["traceroute", "--json", way, &server.to_string()]);
        }
        for page in [&nginx.small, nginx.big.as_ref().expect("10 MB")] {
            let url = format!("http://{}{}", SocketAddr::new(server, 80), page.path);
            let output = service.run(NOBODY, &["get", "-q", &url]);
            assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!((output.stdout.len() as u64, sha256(&output.stdout)), (page.length, page.sha256), "{url}");
        }
        let text = service.succeed(NOBODY, &["dns", "--json", "--server", &server.to_string(), HOST]);
        assert!(text.contains("198.51.100.80"), "{text}");
    }
    let tenant = Tenant::start(&service, NOBODY, "tcp", 50_100, 50_109, &[]);
    let leases = json(&service.succeed(NOBODY, &["leases", "--json"]));
    assert_eq!(leases.as_array().map(Vec::len), Some(1), "{leases}");
    let (lease, user, last) = (&leases[0]["lease"], &leases[0]["user"], &leases[0]["last_port"]);
    assert_eq!((lease.as_u64(), user.as_u64(), last.as_u64()), (Some(tenant.lease), Some(65_534), Some(50_109)));
    assert_eq!(tenant.end(), [0; 4]);

    let wire = capture.finish();
    let clients: Vec<_> = wire.iter().filter(|packet| ENDS.iter().any(|(own, _)| packet.source.ip() == *own)).collect();
    let (syns, fins) = (clients.iter().filter(|p| p.is_syn()).count(), clients.iter().filter(|p| p.is_fin()).count());
    let rsts = clients.iter().filter(|packet| packet.is_rst()).count() as u64;
    println!("on the wire of the client's: {syns} SYNs, {fins} FINs, {rsts} RSTs");
    assert!(syns >= 12 && fins >= 4, "{syns} SYNs, {fins} FINs");
    // Crafted by the commands, which leave port 80 half open twice for each address; none of the kernel.
    assert_eq!((rsts, reset), (4, 4), "RSTs of the client");

    // The controls: without the service nothing is possible, and where nobody owns the port the kernel resets.
    let syn = format!("IP(dst=\"{SERVER_V4}\")/TCP(dport=80, flags=\"S\")");
    for arguments in [&["sr1", "--direct", &syn][..], &["get", "--direct", "http://192.0.2.1/small"]] {
        let output = service.run(NOBODY, arguments);
        assert_eq!(output.status.code(), Some(i32::from(exit::PERMISSION)), "{arguments:?}: {output:?}");
    }
    // The service lets go of the interface a second after its last lease.
    wait_for("the end of all leases", PATIENCE, || service.leases().is_empty().then_some(()));
    unowned_syn(&lab, ENDS[0], CONTROL_PORT);
    wait_for_rst(&lab, SocketAddr::new(ENDS[0].0, CONTROL_PORT));
}

#[test]
fn two_users_wish_for_the_same_ports() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let tenant = Tenant::start(&service, ONE, "udp", 50_010, 50_019, &[]);
    service.session(TWO, async |control| {
        for (first, last) in [(50_010, 50_010), (50_019, 50_019), (50_000, 50_010), (50_019, 50_030), (50_012, 50_013)]
        {
            let call = LeaseCall { last_port: Some(last), ..udp(first) };
            let error = Socket::lease(&control, &call).await.map(drop).expect_err("somebody else's ports");
            let Error::PortTaken { protocol: "UDP", port, holder: Some(holder), .. } = &error else {
                panic!("{first}-{last}: {error:?}")
            };
            assert!((50_010..=50_019).contains(port), "{error}");
            let wanted = format!("lease {} of user 71001, process {}", tenant.lease, tenant.process.id());
            assert_eq!(*holder, wanted, "{first}-{last}");
        }
        // What was refused in the middle of a range is given back, and neighbours are free.
        for (first, last) in [(50_000, 50_009), (50_020, 50_030)] {
            let call = LeaseCall { last_port: Some(last), ..udp(first) };
            Socket::lease(&control, &call).await.expect("free ports");
        }
        // The same numbers of another protocol are other ports.
        let tcp = LeaseCall { protocol: "tcp".to_owned(), last_port: Some(50_019), ..udp(50_010) };
        Socket::lease(&control, &tcp).await.expect("the ports of TCP");
    });
    assert_eq!(tenant.end(), [0; 4]);
    service.session(TWO, async |control| {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = Socket::lease(&control, &udp(50_010)).await {
            assert!(matches!(error, Error::PortTaken { .. }) && Instant::now() < deadline, "{error}");
        }
    });
}

/// Packets in all.
const MILLION: u64 = 1_000_000;

/// Packets that may be on their way, so that no ring of the kernel's runs full: half of the frames that the service has for
/// them. Where root's other programs have locked memory, those are less than it wanted, and it says so.
fn on_the_way(service: &Service) -> u64 {
    let notes = service.session(OBSERVER, async |control| {
        let name = Some(INTERFACE.to_owned());
        control.call(&InterfacesCall { name }).await.expect("the interface").interfaces.remove(0).notes
    });
    let told = notes.iter().find_map(|note| note.strip_prefix("AF_XDP with ")?.split(' ').next()?.parse::<u64>().ok());
    println!("{notes:?}");
    told.unwrap_or(8192) / 2
}

#[test]
fn a_million_packets_and_none_crossed() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    // The same numbers, of the other protocol, are the other user's.
    let tenants = [(ONE, "udp", 50_000), (ONE, "tcp", 50_008), (TWO, "udp", 50_008), (TWO, "tcp", 50_000)];
    let running = tenants.map(|(who, protocol, first)| Tenant::start(&service, who, protocol, first, first + 7, &[]));
    let client = lab.client().run(|| mac(INTERFACE)).expect("enter the client");
    let frames: Vec<Vec<u8>> = (0..4096_u16).map(|number| answer(client, number)).collect();
    let on_the_way = on_the_way(&service);
    let began = Instant::now();
    let per_lease = || {
        let leases = service.leases();
        running.each_ref().map(|tenant| {
            let lease = leases.iter().find(|lease| lease.lease == tenant.lease).expect("the lease");
            (lease.delivered, lease.lost)
        })
    };
    let per_lease = within(lab.server(), async || {
        let link = interface(INTERFACE).await.expect("the interface");
        let mut sender = FrameSender::open(&link, Outlet::Direct).expect("a sender");
        while sender.sent() < MILLION {
            let from = (sender.sent() % 4096) as usize;
            let count = (4096 - from).min(on_the_way as usize / 4).min((MILLION - sender.sent()) as usize);
            sender.send(&frames[from..from + count]).expect("send");
            let until =
                sender.sent().saturating_sub(if sender.sent() < MILLION { on_the_way - on_the_way / 4 } else { 0 });
            wait_for("what was sent", Duration::from_secs(30), || {
                let arrived: u64 = per_lease().iter().map(|(delivered, _)| delivered).sum();
                (arrived >= until).then_some(())
            });
        }
        assert_eq!((sender.sent(), sender.refused()), (MILLION, 0));
        per_lease()
    });
    let took = began.elapsed();
    let (told, link) = service.session(OBSERVER, async |control| {
        let mut counters = control.call(&CountersCall::default()).await.expect("the counters");
        let name = Some(INTERFACE.to_owned());
        let mut links = control.call(&InterfacesCall { name }).await.expect("the interface");
        (counters.interfaces.remove(0), links.interfaces.remove(0))
    });
    let counter = |name: &str| told.counters[name];
    let ends = running.map(Tenant::end);
    println!("{MILLION} packets in {took:?}, {:?}, {:?}: {:?}", link.mode, link.notes, told.counters);
    println!("read, crossed, other, lost: {ends:?}");

    for ((delivered, lost), [read, crossed, other, told]) in per_lease.into_iter().zip(ends) {
        assert_eq!((crossed, other), (0, 0));
        assert_eq!((delivered, lost), (read + lost, told), "delivered is what was read and what was lost");
        // Half of each protocol's packets went to each user.
        assert_eq!(delivered, MILLION / 4);
        assert!(read > 0);
    }
    assert_eq!(counter("redirected") + counter("copied"), MILLION);
    assert_eq!(counter("delivery_full") + counter("rst_suppressed"), 0);
}

/// What a server may answer: a datagram or a segment to one of 16 ports, with the port and the protocol in its payload.
fn answer(client: [u8; 6], number: u16) -> Vec<u8> {
    let port = 50_000 + number / 2 % 16;
    let (from, to) = (SocketAddr::new(SERVER_V4.into(), 1000 + number), SocketAddr::new(CLIENT_V4.into(), port));
    let protocol = if number.is_multiple_of(2) { frame::UDP } else { frame::TCP };
    let payload = [&port.to_be_bytes()[..], &[protocol], &number.to_be_bytes()].concat();
    let packet = match protocol {
        frame::UDP => frame::udp_ip(from, to, &payload),
        _ => Tcp::new([SYN | ACK, RST, ACK][usize::from(number % 3)], 1, 1).with(&payload).ip(from, to),
    };
    let mut frame = frame::framed(&packet);
    frame[..6].copy_from_slice(&client);
    frame
}

#[test]
fn a_user_sees_what_is_the_users_own() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let tenants =
        [(ONE, 50_000), (TWO, 50_001)].map(|(who, port)| (who, Tenant::start(&service, who, "udp", port, port, &[])));
    let client = lab.client().run(|| mac(INTERFACE)).expect("enter the client");
    let frames = [0, 2].map(|number| answer(client, number));
    within(lab.server(), async || {
        let link = interface(INTERFACE).await.expect("the interface");
        FrameSender::open(&link, Outlet::Direct).expect("a sender").send(&frames).expect("send");
    });
    wait_for("both packets", PATIENCE, || {
        let leases = service.leases();
        (leases.iter().map(|lease| lease.delivered).sum::<u64>() == 2).then_some(())
    });
    let everything = service.session(OBSERVER, async |control| {
        let leases = control.call(&ListLeasesCall::default()).await.expect("leases").leases;
        let flows = control.call(&ListFlowsCall::default()).await.expect("flows").flows;
        (leases.iter().map(|lease| lease.user).collect::<Vec<_>>(), flows.len())
    });
    assert_eq!(everything, (vec![71_001, 71_002], 2));
    for (at, (who, tenant)) in tenants.iter().enumerate() {
        let other = tenants[1 - at].1.lease;
        service.session(*who, async |control| {
            // Asked for in every way.
            for mine in [None, Some(false), Some(true)] {
                for after in [None, Some(0)] {
                    let call = ListLeasesCall { mine, after, ..ListLeasesCall::default() };
                    let leases = control.call(&call).await.expect("leases").leases;
                    assert_eq!(leases.iter().map(|lease| lease.lease).collect::<Vec<_>>(), [tenant.lease]);
                }
            }
            let flows = control.call(&ListFlowsCall::default()).await.expect("flows").flows;
            let local = format!("{CLIENT_V4}:{}", 50_000 + at);
            assert_eq!(flows.iter().map(|flow| flow.local.as_str()).collect::<Vec<_>>(), [local]);
            let port = Some(50_001 - at as u64);
            let theirs = control.call(&ListFlowsCall { port, ..ListFlowsCall::default() }).await.expect("flows").flows;
            assert_eq!(theirs, []);
            // Not even whether there is such a lease.
            let [theirs, none] = [other, 999_999].map(|lease| ReleaseCall { lease });
            let refused = control.call(&theirs).await.expect_err("another's lease").to_string();
            let unknown = control.call(&none).await.expect_err("no lease").to_string();
            assert_eq!(refused.replace(&other.to_string(), "N"), unknown.replace("999999", "N"));
            let error = control.call(&ReloadCall {}).await.expect_err("reload");
            assert!(matches!(error, Error::Forbidden { rule: None, .. }), "{error:?}");
        });
    }
    // To observe is not to own.
    let error = service.session(OBSERVER, async |control| {
        control.call(&ReleaseCall { lease: tenants[0].1.lease }).await.expect_err("another's lease")
    });
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    assert_eq!(
        service.session(OBSERVER, async |control| control.call(&ListLeasesCall::default()).await.unwrap().leases.len()),
        2
    );
    for (_, tenant) in tenants {
        assert_eq!(tenant.end(), [1, 0, 0, 0]);
    }
}

/// Users in what a user is told by Monitor while both begin and end leases.
fn monitored(service: &Service, who: Who) -> Vec<(String, u32)> {
    std::thread::scope(|scope| {
        let (listens, is_listening) = mpsc::channel();
        let watching = scope.spawn(move || {
            service.session(who, async |control| {
                let mut events = Vec::new();
                let mut told = control.subscribe(&MonitorCall { interval_ms: Some(100) }).await.expect("monitor");
                let deadline = tokio::time::Instant::now() + PATIENCE;
                loop {
                    let next = tokio::time::timeout_at(deadline, told.next()).await.expect("events in time");
                    let _ = listens.send(());
                    for event in next.expect("the service").expect("more events").events {
                        let Some(user) = event.user else { continue };
                        let is_last = event.event == "lease-ended" && event.first_port == Some(50_500);
                        events.push((event.event, user));
                        if is_last {
                            return events;
                        }
                    }
                }
            })
        });
        is_listening.recv_timeout(PATIENCE).expect("it listens");
        for (who, port) in [(ONE, 50_001), (TWO, 50_002), (ONE, 50_003), (TWO, 50_004)] {
            assert_eq!(Tenant::start(service, who, "udp", port, port, &[]).end(), [0; 4]);
        }
        // The last one is the watcher's own.
        assert_eq!(Tenant::start(service, who, "udp", 50_500, 50_500, &[]).end(), [0; 4]);
        watching.join().expect("the watcher")
    })
}

#[test]
fn events_of_others_are_not_told() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    for who in [ONE, TWO] {
        let events = monitored(&service, who);
        assert_eq!(events.len(), 6, "three leases of one's own begin and end: {events:?}");
        assert!(events.iter().all(|(_, user)| *user == who.user), "{events:?}");
    }
    let all = monitored(&service, OBSERVER);
    for who in [ONE, TWO, OBSERVER] {
        assert!(all.iter().any(|(_, user)| *user == who.user), "{all:?}");
    }
}

/// Ports have to be free again so soon.
const SOON: Duration = Duration::from_millis(100);

/// Waits until a port can be bound by others, which it cannot yet.
fn freed(namespace: &NetNs, port: u16, end: impl FnOnce() + Send) -> Duration {
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
    let work = || {
        bind().expect_err("it is leased");
        let began = Instant::now();
        end();
        while bind().is_err() {
            assert!(began.elapsed() < PATIENCE, "port {port} is never free");
            std::thread::sleep(Duration::from_micros(200));
        }
        began.elapsed()
    };
    namespace.run(work).expect("enter the namespace")
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("a signal");
}

fn assert_soon(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!("free again after {what}: median {:?}, longest {:?}", times[times.len() / 2], times[times.len() - 1]);
    // Most of them: other programs may keep the processors busy now and then.
    assert!(times[times.len() / 2] < SOON, "{what}: {times:?}");
}

#[test]
fn ports_are_free_at_once() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let stays = Tenant::start(&service, TWO, "udp", 51_000, 51_000, &[]);

    // Closed, while the control connection stays.
    let (send, receive) = mpsc::channel::<mpsc::Sender<()>>();
    let closed = std::thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let service = &service;
        scope.spawn(move || {
            service.session(ONE, async move |control| {
                for _ in 0..20 {
                    receive.recv().expect("the test").send(()).expect("the test");
                    let socket = Socket::lease(&control, &udp(50_000)).await.expect("a lease");
                    ready.send(()).expect("the test");
                    let done = receive.recv().expect("the test");
                    drop(socket);
                    done.send(()).expect("the test");
                }
            });
        });
        let tell = || {
            let (done, is_done) = mpsc::channel();
            send.send(done).expect("the client");
            is_done.recv().expect("the client");
        };
        let close = |_| {
            tell();
            is_ready.recv_timeout(PATIENCE).expect("a lease");
            freed(lab.client(), 50_000, tell)
        };
        (0..20).map(close).collect()
    });
    assert_soon("close", closed);

    let killed = |_| {
        let tenant = Tenant::start(&service, ONE, "udp", 50_000, 50_059, &[]);
        freed(lab.client(), 50_059, || signal(tenant.process.id(), Signal::SIGKILL))
    };
    assert_soon("SIGKILL", (0..20).map(killed).collect());

    // A child has it, too.
    let inherited = |_| {
        let mut tenant = Tenant::start(&service, ONE, "udp", 50_000, 50_000, &["inherit"]);
        let child: u32 = tenant.says("child ").parse().expect("a process");
        tenant.process.kill();
        std::thread::sleep(Duration::from_millis(300));
        let held = service.leases();
        assert!(held.iter().any(|lease| lease.lease == tenant.lease), "the child's lease: {held:?}");
        freed(lab.client(), 50_000, || signal(child, Signal::SIGKILL))
    };
    assert_soon("the end of a child that inherited it", (0..5).map(inherited).collect());

    let left = service.leases();
    // Nobody else's lease was touched.
    assert_eq!(left.iter().map(|lease| lease.lease).collect::<Vec<_>>(), [stays.lease]);
    assert_eq!(stays.end(), [0; 4]);
}
