//! A server on a thread of its own in a namespace.

use std::{io, thread::JoinHandle};

use tokio::sync::oneshot;

use super::netns::NetNs;
use crate::{Error, Result};

/// A running server. Dropping it ends its thread and closes its sockets.
#[derive(Debug)]
pub(super) struct ServerThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl ServerThread {
    /// Runs `listen` on a thread in `namespace`. It opens the sockets and returns the future that serves them, which
    /// runs until the server is dropped.
    ///
    /// # Errors
    /// Those of `listen` and of entering the namespace.
    pub(super) fn start<S: Future<Output = ()>>(
        namespace: &NetNs,
        name: &'static str,
        listen: impl AsyncFnOnce() -> io::Result<S> + Send + 'static,
    ) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let failed = move |source| Error::io(format!("start the lab's {name}"), "CAP_NET_ADMIN", source);
        let thread = namespace.spawn(name, move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error))),
            };
            // Dropping the runtime drops the tasks of all connections.
            runtime.block_on(async {
                match listen().await {
                    Ok(serve) => {
                        drop(ready.send(Ok(())));
                        tokio::select! { () = serve => {} _ = stopped => {} }
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            });
        })?;
        match is_ready.recv() {
            Ok(Ok(())) => Ok(Self { stop: Some(stop), thread: Some(thread) }),
            Ok(Err(error)) => Err(failed(error)),
            // The thread ended early: it could not enter the namespace, or it panicked.
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                _ => Err(failed(io::Error::other("its thread panicked"))),
            },
        }
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The panic hook has reported a panic.
            let _ = thread.join();
        }
    }
}
