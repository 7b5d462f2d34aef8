//! Real peers in the server namespace, each with its own configuration, killed when dropped.

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crafter::lab::{NetNs, SERVER_V4, SERVER_V6};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::slow;

/// Timeout for the first answer of a peer; generous, because the machine may be busy.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Polls until `done` returns a value.
///
/// # Panics
/// After `timeout`, which is longer on an emulated CPU.
pub fn wait_for<T>(what: &str, timeout: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let timeout = slow::allow(timeout);
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "timeout after {timeout:?} while waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child process, killed and waited for when dropped.
pub struct Process(pub Child);

impl Process {
    /// Starts `command` with no input.
    pub fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn();
        Self(
            child.unwrap_or_else(|e| panic!("{} does not start (`cargo xtask setup` installs it): {e}", name(command))),
        )
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it exits.
    ///
    /// # Panics
    /// If it does not exit within `timeout`.
    pub fn wait_for_exit(&mut self, timeout: Duration) -> ExitStatus {
        wait_for(&format!("the exit of process {}", self.id()), timeout, || self.0.try_wait().expect("a child process"))
    }

    /// Kills it with SIGKILL and waits for its exit.
    pub fn kill(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// A file served by the web server.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its path in URLs.
    pub path: &'static str,
    /// Its length in bytes.
    pub length: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

impl Page {
    /// Its SHA-256 in hexadecimal.
    pub fn hex(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// nginx on port 80, IPv4 and IPv6; it serves its files under `/` and, with limited rate, under `/slow/`.
pub struct Nginx {
    _process: Process,
    _directory: TempDir,
    /// The small page.
    pub small: Page,
    /// A page whose download takes about four seconds under `/slow/`.
    pub medium: Page,
    /// The page of 100 MB or of the requested size.
    pub big: Option<Page>,
}

/// 100 MB.
pub const BIG: u64 = 100_000_000;

impl Nginx {
    /// Starts nginx with the small and the medium page.
    pub fn start(server: &NetNs) -> Self {
        Self::with(server, None)
    }

    /// Starts nginx with a page of 100 MB, too; smaller on an emulated CPU.
    pub fn with_big(server: &NetNs) -> Self {
        Self::with(server, Some(slow::bytes(BIG)))
    }

    /// Starts nginx with a big page of `big` bytes.
    pub fn with(server: &NetNs, big: Option<u64>) -> Self {
        let directory = TempDir::with_prefix("crafter-nginx-").expect("a directory for nginx");
        let root = directory.path();
        fs::create_dir(root.join("www")).expect("a directory for pages");
        let page = |path: &'static str, length| page(&root.join("www"), path, length);
        // About 40 segments, so that several ACKs are needed.
        let small = page("/small", 60_000);
        let medium = page("/medium", 8_000_000);
        let big = big.map(|length| page("/big", length));
        let config = root.join("nginx.conf");
        fs::write(&config, nginx_config(root)).expect("nginx's configuration");
        let mut command = server.command("nginx");
        command.arg("-p").arg(root).arg("-c").arg(&config).arg("-e").arg(root.join("error.log"));
        let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let log = || fs::read_to_string(root.join("error.log")).unwrap_or_default();
        let ready = || {
            let connect = |address: IpAddr| TcpStream::connect(SocketAddr::new(address, 80)).ok();
            server
                .run(|| connect(Ipv4Addr::LOCALHOST.into()).and(connect(Ipv6Addr::LOCALHOST.into())))
                .expect("enter the server")
        };
        let deadline = Instant::now() + slow::allow(START_TIMEOUT);
        while ready().is_none() {
            assert!(Instant::now() < deadline, "nginx does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { _process: process, _directory: directory, small, medium, big }
    }
}

fn nginx_config(root: &Path) -> String {
    let root = root.display();
    // Slower on an emulated CPU, so that a transfer covers the same number of steps.
    let rate = slow::bytes(2048);
    // A single process, so that killing it leaves none; as root, so that no user account is needed.
    format!(
        "daemon off; master_process off; user root; pid {root}/pid;
         error_log {root}/error.log warn;
         events {{ worker_connections 256; }}
         http {{
           access_log off; sendfile on; tcp_nopush on; keepalive_timeout 60;
           client_body_temp_path {root}/1; proxy_temp_path {root}/2; fastcgi_temp_path {root}/3;
           uwsgi_temp_path {root}/4; scgi_temp_path {root}/5;
           default_type application/octet-stream;
           server {{
             listen 80; listen [::]:80 ipv6only=on;
             root {root}/www;
             location /slow/ {{ alias {root}/www/; limit_rate {rate}k; }}
           }}
         }}"
    )
}

/// Writes a page of pseudo-random bytes that do not repeat.
fn page(directory: &Path, path: &'static str, length: u64) -> Page {
    let mut file = fs::File::create(directory.join(&path[1..])).expect("a page");
    let mut state = length.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut hasher = Sha256::new();
    let mut left = length as usize;
    let mut piece = vec![0; 1 << 20];
    while left > 0 {
        for word in piece.chunks_exact_mut(8) {
            // xorshift64 (Marsaglia, 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = &piece[..left.min(piece.len())];
        hasher.update(part);
        file.write_all(part).expect("write a page");
        left -= part.len();
    }
    Page { path, length, sha256: hasher.finalize().into() }
}

/// dnsmasq on port 53, IPv4 and IPv6.
pub struct Dnsmasq {
    _process: Process,
    _directory: TempDir,
}

/// A name with an A record [`HOST_V4`] and an AAAA record [`HOST_V6`].
pub const HOST: &str = "www.crafter.test";
/// See [`HOST`].
pub const HOST_V4: [u8; 4] = [198, 51, 100, 80];
/// See [`HOST`].
pub const HOST_V6: &str = "2001:db8:80::80";
/// A name with so many TXT records that the answer (with EDNS) is longer than any MTU of these tests.
pub const LONG: &str = "long.crafter.test";
/// Number of these records, and length of each in bytes.
pub const LONG_RECORDS: (usize, usize) = (14, 240);

impl Dnsmasq {
    /// Starts dnsmasq and waits for an answer over both IP versions.
    pub fn start(server: &NetNs) -> Self {
        let directory = TempDir::with_prefix("crafter-dnsmasq-").expect("a directory for dnsmasq");
        let config: PathBuf = directory.path().join("dnsmasq.conf");
        let mut text = format!(
            "no-resolv\nno-hosts\nport=53\nuser=root\npid-file=\nbind-interfaces\nno-poll\nedns-packet-max=8192\n\
             listen-address={SERVER_V4}\nlisten-address={SERVER_V6}\nlocal=/crafter.test/\n\
             host-record={HOST},{}.{}.{}.{},{HOST_V6}\n",
            HOST_V4[0], HOST_V4[1], HOST_V4[2], HOST_V4[3]
        );
        for number in 0..LONG_RECORDS.0 {
            let letter = char::from(b'a' + number as u8);
            text += &format!("txt-record={LONG},{}\n", letter.to_string().repeat(LONG_RECORDS.1));
        }
        fs::write(&config, text).expect("dnsmasq's configuration");
        let mut command = server.command("dnsmasq");
        command.arg("--keep-in-foreground").arg("--log-facility=-").arg(format!("--conf-file={}", config.display()));
        let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        wait_for("an answer of dnsmasq over IPv4 and IPv6", START_TIMEOUT, || {
            server.run(|| ask(SERVER_V4.into()).and_then(|()| ask(SERVER_V6.into()))).expect("enter the server").ok()
        });
        Self { _process: process, _directory: directory }
    }
}

/// Queries a server through the kernel's UDP.
fn ask(server: IpAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.connect((server, 53))?;
    socket.send(&crate::dns::query(1, HOST, crate::dns::A, None))?;
    socket.recv(&mut [0; 512]).map(drop)
}
