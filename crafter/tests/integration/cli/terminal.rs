//! A command on a terminal.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::termios::{LocalFlags, Termios, tcgetattr},
};

/// A command on a terminal, of 140 columns unless another size is given.
pub struct Terminal {
    pub child: Child,
    /// The test's end.
    pub keys: File,
    /// Path of the command's end.
    path: PathBuf,
    said: Arc<Mutex<String>>,
    seen: usize,
    is_over: Arc<AtomicBool>,
    reading: Option<JoinHandle<()>>,
}

impl Terminal {
    pub fn new(command: Command) -> Self {
        Self::with_size(command, (40, 140))
    }

    /// With a size, in rows and columns.
    pub fn with_size(mut command: Command, size: (u16, u16)) -> Self {
        // Not openpty(3): the command would inherit the test's end, and the terminal would never disappear.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = PathBuf::from(ptsname_r(&master).unwrap());
        let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path).unwrap();
        resize(&path, size);
        let end = || Stdio::from(slave.try_clone().unwrap());
        if command.get_envs().all(|(name, _)| name != "TERM") {
            command.env("TERM", "xterm");
        }
        // Colours would be between the words that a test waits for.
        if command.get_envs().all(|(name, _)| name != "NO_COLOR") {
            command.env("NO_COLOR", "1");
        }
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        // Otherwise reading from the master would never end.
        drop((command, slave));
        let keys = File::from(OwnedFd::from(master));
        fcntl(&keys, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let (said, mut screen) = (Arc::new(Mutex::new(String::new())), keys.try_clone().unwrap());
        let is_over = Arc::new(AtomicBool::new(false));
        let (writes, ends) = (said.clone(), is_over.clone());
        let reading = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !ends.load(Ordering::Relaxed) {
                match screen.read(&mut bytes) {
                    Ok(count @ 1..) => writes.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count])),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    _ => break,
                }
            }
        });
        Self { child, keys, path, said, seen: 0, is_over, reading: Some(reading) }
    }

    /// Waits for the end of the command, and until all of its output is read; returns the exit code.
    pub fn wait(&mut self) -> i32 {
        let code = super::wait(&mut self.child);
        self.reading.take().unwrap().join().unwrap();
        code
    }

    /// Closes the test's end, so that the command's terminal disappears; returns the exit code of the command.
    pub fn close(mut self) -> i32 {
        self.is_over.store(true, Ordering::Relaxed);
        self.reading.take().unwrap().join().unwrap();
        self.keys = File::open("/dev/null").unwrap();
        super::wait(&mut self.child)
    }

    /// Changes the width.
    pub fn resize(&self, columns: u16) {
        resize(&self.path, (40, columns));
    }

    /// The settings of the terminal.
    pub fn settings(&self) -> Termios {
        tcgetattr(&self.keys).unwrap()
    }

    /// Whether keys are echoed, lines are edited by the kernel, and Ctrl-C sends a signal.
    pub fn is_cooked(&self) -> bool {
        self.settings().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// All output so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    pub fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until a text appears after the last text that was waited for.
    #[track_caller]
    pub fn shows(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let said = self.said.lock().unwrap().clone();
            if let Some(at) = said[self.seen..].find(text) {
                self.seen += at + text.len();
                return;
            }
            assert!(Instant::now() < deadline, "no {text:?} in {:?} of {said:?}", &said[self.seen..]);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sets the size of a terminal, in rows and columns.
fn resize(path: &Path, (rows, columns): (u16, u16)) {
    let mut stty = Command::new("stty");
    stty.arg("-F").arg(path).args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
    assert!(stty.status().unwrap().success());
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
