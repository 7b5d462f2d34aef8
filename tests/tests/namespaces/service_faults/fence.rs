//! What one client does over its connections does not stop the service for others: while each fault lasts, a watchdog
//! calls `Info` as another user.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crafter::lab::{CLIENT_V4, SERVER_V4};
use crafter_tests::{
    frame,
    holder::Holder,
    leak::Serial,
    peer::{Process, wait_for},
    raw::{self, Raw},
    service::{Credentials, NOBODY, REPLY_TIMEOUT, ROOT, Service, Socket, drop_to},
    slow::allow,
    testbed::lab,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        signal::{Signal, kill},
        socket::{setsockopt, sockopt},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use serde_json::{Value, json};

use super::{POLICY, descriptors, lease_call, resident, service, ticks};

/// The user of the watchdog.
const WATCHER: Credentials = Credentials { user: 71_900, group: 71_900 };

/// A user that passes descriptors, of which the kernel allows each user some (ETOOMANYREFS).
const PASSER: Credentials = Credentials { user: 71_902, group: 71_902 };

/// The longest time for which the service may not answer.
const WATCHDOG: Duration = Duration::from_secs(1);

/// Sets a flag when dropped, also by a panic.
struct SetOnDrop<'b>(&'b AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls `Info` as another user until `is_over`; returns the number of calls and the longest time of one.
fn watch(service: &Service, is_over: &AtomicBool) -> (u64, Duration) {
    service.session(WATCHER, async |_| {
        let mut client = Raw::connect(&service.socket);
        let (mut calls, mut longest) = (0, Duration::ZERO);
        while !is_over.load(Ordering::Relaxed) {
            let began = Instant::now();
            assert!(client.call("Info", &json!({}))["error"].is_null());
            (calls, longest) = (calls + 1, longest.max(began.elapsed()));
            std::thread::sleep(Duration::from_millis(5));
        }
        (calls, longest)
    })
}

/// Runs `harm` under the watchdog.
fn watched<T>(service: &Service, harm: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch(service, &is_over));
        let result = {
            let _end = SetOnDrop(&is_over);
            harm()
        };
        let (calls, longest) = watch.join().expect("the watchdog");
        println!("watchdog: {calls} calls, at most {longest:?}");
        assert!(calls > 0 && longest < allow(WATCHDOG), "{calls} calls, at most {longest:?}");
        result
    })
}

/// Runs `work` as a user, whose connections the calling thread makes.
fn acting_as<T: Send>(service: &Service, credentials: Credentials, work: impl FnOnce() -> T + Send) -> T {
    service.session(credentials, async |_| work())
}

fn more_call(method: &str, parameters: &Value) -> Vec<u8> {
    let call = json!({ "method": format!("org.crafter.v1.{method}"), "parameters": parameters, "more": true });
    [call.to_string().as_bytes(), b"\0"].concat()
}

/// Number of flows of the large list.
const FLOWS: u16 = 40_000;

/// Lines in the log about reading the flow map.
fn reads(service: &Service) -> usize {
    service.log().matches("read the flow map").count()
}

#[test]
fn list_of_flows_is_read_once_and_does_not_delay_others() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::with(lab.client(), POLICY, &["--log", "debug"]);
    let socket = service.session(ROOT, async |control| {
        Socket::lease(&control, &lease_call("udp", Some(30_000), None)).await.expect("a lease")
    });
    let from = SocketAddr::new(CLIENT_V4.into(), 30_000);
    for port in 1..=FLOWS {
        socket.send(&frame::udp_ip(from, SocketAddr::new(SERVER_V4.into(), port), b"flow")).expect("send");
    }
    wait_for("the packets", REPLY_TIMEOUT, || {
        service.leases().iter().any(|lease| lease.sent == u64::from(FLOWS)).then_some(())
    });
    let memory = resident(service.pid());
    watched(&service, || {
        // Pages of one flow that nobody reads.
        let mut slow: Vec<Raw> = (0..20).map(|_| Raw::connect(&service.socket)).collect();
        let before = reads(&service);
        for client in &mut slow {
            client.write(&more_call("ListFlows", &json!({ "limit": 1 }))).expect("a call");
        }
        for client in &mut slow {
            assert_eq!(client.answer().expect("a page")["continues"], true);
        }
        // Lists that begin at the same time share a read.
        let begun = reads(&service);
        assert!(begun - before <= slow.len(), "{begun} reads");
        std::thread::sleep(Duration::from_millis(500));
        // One of them reads some thousand pages.
        for _ in 0..5_000 {
            let page = slow[19].answer().expect("a page");
            assert_eq!(page["parameters"]["flows"].as_array().map(Vec::len), Some(1), "{page}");
            assert_eq!(page["continues"], true);
        }
        assert_eq!(reads(&service), begun, "the map is read again for a page");
        drop(slow);
        // All pages of one list, each by a call.
        let (before, mut client, mut after, mut listed) = (reads(&service), Raw::connect(&service.socket), None, 0);
        loop {
            let page = client.call("ListFlows", &json!({ "after": after, "limit": 1000 }));
            listed += page["parameters"]["flows"].as_array().map_or(0, Vec::len);
            after = page["parameters"]["next"].as_u64();
            if after.is_none() {
                break;
            }
        }
        println!("{listed} flows listed");
        // The kernel may have dropped some of them (BPF_MAP_TYPE_LRU_HASH).
        assert!(listed > usize::from(FLOWS) / 2 && listed <= usize::from(FLOWS));
        assert_eq!(reads(&service), before + 1, "the map is read again for a page");
    });
    let more = resident(service.pid()).saturating_sub(memory);
    assert!(more < 48 << 10, "{more} KiB more memory for lists");
    drop(socket);
}

#[test]
fn user_without_a_rule_gets_no_list() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), "[[rule]]\nuser = [0, 71900]\n");
    acting_as(&service, NOBODY, || {
        for method in ["ListFlows", "ListLeases", "Counters", "Interfaces"] {
            let answer = Raw::connect(&service.socket).call(method, &json!({}));
            assert_eq!(answer["error"], "org.crafter.v1.Refused", "{method}: {answer}");
            assert_eq!(answer["parameters"]["verdict"], "no-rule", "{method}: {answer}");
        }
        let route = Raw::connect(&service.socket).call("Route", &json!({ "destination": SERVER_V4.to_string() }));
        assert_eq!(route["error"], "org.crafter.v1.Refused", "{route}");
        for method in ["ListFlows", "Monitor"] {
            let mut client = Raw::connect(&service.socket);
            client.write(&more_call(method, &json!({}))).expect("a call");
            let answer = client.answer().expect("an answer");
            assert_eq!(answer["error"], "org.crafter.v1.Refused", "{method}: {answer}");
        }
        // What everybody may ask: the version, and why nothing else is allowed.
        let mut client = Raw::connect(&service.socket);
        assert!(client.call("Info", &json!({}))["parameters"]["version"].is_string());
        let policy = client.call("Policy", &json!({}));
        assert!(policy["error"].is_null() && policy["parameters"]["rule"].is_null(), "{policy}");
    });
}

/// A TCP socket whose close waits for its peer, and the peer, which does not read.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let mut stream = TcpStream::connect(listener.local_addr().expect("its address")).expect("connect");
    let (peer, _) = listener.accept().expect("a connection");
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 60 }).expect("SO_LINGER");
    stream.set_nonblocking(true).expect("a socket that does not block");
    while stream.write(&[0; 65_536]).is_ok() {}
    (stream.into(), peer)
}

/// A Unix socket with a lingering socket in its queue.
fn queued() -> (OwnedFd, TcpStream) {
    let (lingering, peer) = lingering();
    let (a, b) = UnixStream::pair().expect("a pair");
    raw::send_with(a.as_raw_fd(), b"x", &[lingering.as_fd()]).expect("pass it");
    (b.into(), peer)
}

/// Passes a descriptor; since Linux 6.16 that fails. Returns the descriptor's peer if the service may have it.
fn pass(socket: BorrowedFd<'_>, bytes: &[u8], (descriptor, peer): (OwnedFd, TcpStream)) -> Option<TcpStream> {
    match raw::send_with(socket.as_raw_fd(), bytes, &[descriptor.as_fd()]) {
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
            // First, so that this process does not wait for the close of the descriptor.
            drop(peer);
            None
        }
        Ok(_) => Some(peer),
    }
}

#[test]
fn passed_descriptors_do_not_stop_the_service() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), "[[rule]]\nuser = [0, 71900, 71902]\n");
    let stranger = Credentials { user: 71_901, group: 71_901 };
    let mut peers = Vec::new();
    for make in [lingering, queued] {
        watched(&service, || {
            for credentials in [PASSER, stranger] {
                let lingers = make();
                peers.extend(acting_as(&service, credentials, || {
                    let mut client = Raw::connect(&service.socket);
                    pass(client.stream().as_fd(), &raw::call("Info", &json!({})), lingers)
                }));
                // In the queue of a connection that is closed.
                let lingers = make();
                peers.extend(acting_as(&service, credentials, || {
                    let mut client = Raw::connect(&service.socket);
                    client.write(b"{").expect("the beginning of a call");
                    pass(client.stream().as_fd(), b"x", lingers)
                }));
            }
            let lingers = make();
            peers.extend(service.session(PASSER, async |control| {
                let socket = Socket::lease(&control, &lease_call("udp", None, None)).await.expect("a lease");
                pass(socket.fd.as_fd(), b"x", lingers)
            }));
            std::thread::sleep(Duration::from_millis(500));
        });
    }
}

/// The kernel accepts descriptors for a connection that was made before the service refused them.
#[test]
fn descriptors_passed_before_the_start_do_not_stop_the_service() {
    let _serial = Serial::begin();
    let lab = lab();
    let mut service = Service::start(lab.client(), POLICY);
    assert_eq!(service.stop(), Some(0));
    let listener = UnixListener::bind(&service.socket).expect("a socket");
    fs::set_permissions(&service.socket, fs::Permissions::from_mode(0o666)).expect("a socket for all");
    let early = acting_as(&service, PASSER, || {
        let mut clients = Vec::new();
        let mut peers = Vec::new();
        for (at, make) in [lingering, queued, lingering, queued].into_iter().enumerate() {
            let (lingers, peer) = make();
            let mut client = Raw::connect(&service.socket);
            let call = raw::call("Info", &json!({}));
            raw::send_with(client.stream().as_raw_fd(), &call, &[lingers.as_fd()]).expect("pass a descriptor");
            peers.push(peer);
            // The descriptor of a connection that is closed at once is never received.
            if at < 2 {
                clients.push(client);
            }
        }
        (clients, peers)
    });
    // sd_listen_fds(3): descriptor 3, and the id of the process for which it is.
    let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@""#;
    let mut command = lab.client().command("sh");
    command.args(["-c", script, "sh"]).arg(&service.binary).args(["serve", "--policy"]);
    command.arg(&service.policy).stdin(Stdio::from(OwnedFd::from(listener)));
    let mut process = Process(command.spawn().expect("crafter serve"));
    watched(&service, || {
        let (mut clients, peers) = early;
        for client in &mut clients {
            assert!(client.answer().is_none(), "a connection with descriptors ends");
        }
        std::thread::sleep(Duration::from_millis(500));
        // The service ends while a close is blocked.
        kill(Pid::from_raw(process.id() as i32), Signal::SIGHUP).expect("SIGHUP");
        drop(clients);
        peers
    });
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).expect("SIGTERM");
    assert!(process.wait_for_exit(Duration::from_secs(5)).success());
    drop(service);
}

/// A mounted file system whose daemon never answers: open(2) waits until this is dropped.
struct DeadMount {
    path: PathBuf,
    _device: File,
}

impl DeadMount {
    fn new(path: &Path) -> io::Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(Some("dead"), path, Some("fuse"), MsFlags::empty(), Some(&options[..]))?;
        Ok(Self { path: path.to_owned(), _device: device })
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).expect("unmount");
    }
}

/// Exit code and standard error of a service that cannot start.
fn failed_start(service: &Service, policy: &Path) -> (Option<i32>, String) {
    let mut command = service.namespace().command(&service.binary);
    command.args(["serve", "--everybody", "--socket"]).arg(service.directory().join("other.sock"));
    let child = command.arg("--policy").arg(policy).stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut process = Process(child.expect("crafter serve"));
    let code = process.wait_for_exit(Duration::from_secs(15)).code();
    let stderr = io::read_to_string(process.0.stderr.take().expect("its standard error")).expect("UTF-8");
    (code, stderr)
}

#[test]
fn policy_that_is_not_a_regular_file_is_rejected_at_once() {
    let _serial = Serial::begin();
    let lab = lab();
    let mut service = service(&lab);
    let fifo = service.directory().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
    let link = service.directory().join("link");
    for (target, what) in
        [(&fifo, "a FIFO"), (&PathBuf::from("/dev/zero"), "a device"), (&PathBuf::from("/"), "a directory")]
    {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).expect("a link");
        let expected = format!("it is {what}; use a regular file");
        for path in [target, &link] {
            let (code, stderr) = failed_start(&service, path);
            assert!(code == Some(2) && stderr.contains(&expected), "{code:?}: {stderr}");
        }
        fs::remove_file(&service.policy).expect("remove the policy");
        std::os::unix::fs::symlink(target, &service.policy).expect("a link");
        watched(&service, || {
            let reply = Raw::connect(&service.socket).call("Reload", &json!({}));
            assert_eq!(reply["error"], "org.crafter.v1.Invalid", "{reply}");
            assert!(reply["parameters"]["message"].as_str().is_some_and(|text| text == expected), "{reply}");
            let before = service.log().matches("the previous policy remains in force").count();
            service.signal(Signal::SIGHUP);
            wait_for("the log line about SIGHUP", REPLY_TIMEOUT, || {
                (service.log().matches("the previous policy remains in force").count() > before).then_some(())
            });
        });
        // The previous policy remains in force.
        assert_eq!(Raw::connect(&service.socket).call("Policy", &json!({}))["parameters"]["rule"]["number"], 1);
    }
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn unresponsive_file_system_of_the_policy_does_not_stop_the_service() {
    let _serial = Serial::begin();
    let lab = lab();
    let mut service = service(&lab);
    let directory = service.directory().join("dead");
    fs::create_dir(&directory).expect("a directory");
    let dead = match DeadMount::new(&directory) {
        Ok(dead) => dead,
        Err(error) => return println!("not tested: no file systems in user space: {error}"),
    };
    let file = directory.join("crafter.toml");
    let (code, stderr) = failed_start(&service, &file);
    assert!(code == Some(1) && stderr.contains("no answer within 5s"), "{code:?}: {stderr}");
    // SIGTERM ends a service that still waits for its policy.
    let mut command = service.namespace().command(&service.binary);
    command.args(["serve", "--everybody", "--socket"]).arg(service.directory().join("other.sock"));
    let mut process = Process::start(command.arg("--policy").arg(&file));
    std::thread::sleep(Duration::from_secs(1));
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).expect("SIGTERM");
    assert_eq!(process.wait_for_exit(Duration::from_secs(2)).code(), Some(0));

    fs::remove_file(&service.policy).expect("remove the policy");
    std::os::unix::fs::symlink(&file, &service.policy).expect("a link");
    watched(&service, || {
        let reply = Raw::connect(&service.socket).call("Reload", &json!({}));
        let message = reply["parameters"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("no answer within 5s"), "{reply}");
        // The thread of the first attempt still waits; there is no second one.
        for _ in 0..20 {
            let reply = Raw::connect(&service.socket).call("Reload", &json!({}));
            let message = reply["parameters"]["message"].as_str().unwrap_or_default();
            assert!(message.contains("an earlier attempt still waits"), "{reply}");
        }
        let threads = fs::read_dir(format!("/proc/{}/task", service.pid())).expect("its threads");
        let names = threads.flatten().map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default());
        assert_eq!(names.filter(|name| name.trim() == "policy").count(), 1);
        assert_eq!(Raw::connect(&service.socket).call("Policy", &json!({}))["parameters"]["rule"]["number"], 1);
    });
    // Once the file system answers, the policy is read again.
    drop(dead);
    fs::remove_file(&service.policy).expect("remove the link");
    service.write_policy(POLICY);
    wait_for("a reload", REPLY_TIMEOUT, || {
        Raw::connect(&service.socket).call("Reload", &json!({}))["error"].is_null().then_some(())
    });
    assert_eq!(service.stop(), Some(0));
}

/// A process of a user that connects as often as it can, and keeps the connections.
fn connecting(service: &Service, user: u32) -> Holder {
    let mut command = Command::new(service.place(env!("CARGO_BIN_EXE_client").as_ref()));
    command.arg(&service.socket).arg("connect");
    drop_to(&mut command, Credentials { user, group: user });
    let mut holder = Holder::start(&mut command);
    println!("user {user}: {} connections", holder.wait_for("open "));
    holder
}

#[test]
fn connections_of_many_users_exclude_no_other_user() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let mut many: Vec<Holder> = (72_001..72_009).map(|user| connecting(&service, user)).collect();
    let open = descriptors(service.pid());
    println!("{open} descriptors of the service");
    assert!(open > 4000, "the users have less than the service allows");
    let mut root = Raw::connect(&service.socket);
    assert!(root.call("Info", &json!({}))["error"].is_null());
    assert!(root.call("Reload", &json!({}))["error"].is_null());
    // Another user gets a place of the user with the most.
    watched(&service, || {
        let mut held = Vec::new();
        acting_as(&service, NOBODY, || {
            for _ in 0..100 {
                let mut client = Raw::connect(&service.socket);
                assert!(client.call("Info", &json!({}))["error"].is_null());
                held.push(client);
            }
        });
    });
    many.iter_mut().for_each(Holder::kill);
}

#[test]
fn shortage_of_descriptors_leaves_root_a_connection() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let limit = descriptors(service.pid()) + 40;
    let status = Command::new("prlimit")
        .args(["--pid", &service.pid().to_string(), &format!("--nofile={limit}:{limit}")])
        .status();
    assert!(status.expect("prlimit").success());
    let mut many = connecting(&service, NOBODY.user);
    // In the queue of the listener, other connections are before that of root.
    let mut root = Raw::connect(&service.socket);
    assert!(root.call("Info", &json!({}))["error"].is_null());
    assert!(root.call("Reload", &json!({}))["error"].is_null());
    let mut other = acting_as(&service, WATCHER, || Raw::connect(&service.socket));
    assert!(other.call("Info", &json!({}))["error"].is_null());
    std::thread::sleep(Duration::from_millis(500));
    let (before, log) = (ticks(service.pid()), service.log().len());
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks(service.pid()) - before;
    assert!(used < 40, "{used} ticks in 2 s without a call");
    assert!(service.log().len() - log < 1000, "the log grows");
    many.kill();
    wait_for("a connection", REPLY_TIMEOUT, || {
        let mut client = acting_as(&service, NOBODY, || Raw::connect(&service.socket));
        client.write(&raw::call("Info", &json!({}))).ok()?;
        client.answer()
    });
}

#[test]
fn thousands_of_calls_do_not_delay_other_users() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let describe =
        br#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.crafter.v1"}}"#;
    let describe = [&describe[..], b"\0"].concat();
    let unknown = b"{\"method\":\"org.crafter.v1.Nothing\"}\0".to_vec();
    let oneway = b"{\"method\":\"org.crafter.v1.ListLeases\",\"oneway\":true}\0".to_vec();
    watched(&service, || {
        acting_as(&service, NOBODY, || {
            let is_over = AtomicBool::new(false);
            let began = Instant::now();
            std::thread::scope(|scope| {
                for call in [&describe, &unknown, &oneway] {
                    for _ in 0..8 {
                        let mut stream = UnixStream::connect(&service.socket).expect("connect");
                        let mut reader = stream.try_clone().expect("a copy");
                        scope.spawn(move || io::copy(&mut reader, &mut io::sink()));
                        let is_over = &is_over;
                        scope.spawn(move || {
                            let many = call.repeat(1000);
                            while !is_over.load(Ordering::Relaxed) && stream.write_all(&many).is_ok() {}
                            let _ = stream.shutdown(std::net::Shutdown::Both);
                        });
                    }
                }
                while began.elapsed() < Duration::from_secs(3) {
                    std::thread::sleep(Duration::from_millis(50));
                }
                is_over.store(true, Ordering::Relaxed);
            });
        });
    });
}

#[test]
fn unfinished_calls_and_unread_replies_are_bounded() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let memory = resident(service.pid());
    let mut held = Vec::new();
    watched(&service, || {
        acting_as(&service, NOBODY, || {
            // The longest call, in pieces, but for its end.
            for _ in 0..400 {
                let mut client = Raw::connect(&service.socket);
                for _ in 0..60 {
                    // The service may close it.
                    if client.write(&[b' '; 1000]).is_err() {
                        break;
                    }
                }
                held.push(client);
            }
        });
        std::thread::sleep(Duration::from_millis(200));
    });
    let more = resident(service.pid()).saturating_sub(memory);
    println!("{more} KiB for 400 unfinished calls");
    assert!(more < 12 << 10, "{more} KiB for unfinished calls");
    held.clear();
    watched(&service, || {
        acting_as(&service, NOBODY, || {
            let describe = br#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.crafter.v1"}}"#;
            let many = [&describe[..], b"\0"].concat().repeat(100);
            for _ in 0..400 {
                let mut client = Raw::connect(&service.socket);
                let _ = client.write(&many);
                held.push(client);
            }
        });
        std::thread::sleep(Duration::from_millis(500));
    });
    let more = resident(service.pid()).saturating_sub(memory);
    println!("{more} KiB for 400 connections with unread replies");
    assert!(more < 20 << 10, "{more} KiB for unread replies");
    drop(held);
}
