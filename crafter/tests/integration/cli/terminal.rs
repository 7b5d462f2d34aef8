//! A command on a terminal.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::pty::{Winsize, openpty};

/// A command on a terminal, of 140 columns unless another size is given.
pub struct Terminal {
    pub child: Child,
    /// The test's end.
    pub keys: File,
    said: Arc<Mutex<String>>,
    seen: usize,
}

impl Terminal {
    pub fn new(command: Command) -> Self {
        Self::with_size(command, Winsize { ws_row: 40, ws_col: 140, ws_xpixel: 0, ws_ypixel: 0 })
    }

    pub fn with_size(mut command: Command, size: Winsize) -> Self {
        let pty = openpty(Some(&size), None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        command.env("TERM", "xterm");
        // Colours would be between the words that a test waits for.
        if !command.get_envs().any(|(name, _)| name == "NO_COLOR") {
            command.env("NO_COLOR", "1");
        }
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        // Otherwise reading from the master would never end.
        drop((command, pty.slave));
        let keys = File::from(pty.master);
        let (said, mut screen) = (Arc::new(Mutex::new(String::new())), keys.try_clone().unwrap());
        let writes = said.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                writes.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { child, keys, said, seen: 0 }
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
            assert!(Instant::now() < deadline, "no {text:?} in {:?}", &said[self.seen..]);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
