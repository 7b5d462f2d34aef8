//! Helpers of the integration tests: namespaces, real peers, packet captures, and a model of the kernel half.

pub mod bench;
pub mod capture;
pub mod differential;
pub mod dns;
pub mod executable;
#[path = "../../crafter/src/cli/exit.rs"]
pub mod exit;
pub mod foreign;
pub mod frame;
pub mod guarded;
pub mod holder;
pub mod impair;
pub mod leak;
pub mod machine;
pub mod manual;
pub mod messages;
pub mod oracle;
pub mod peer;
pub mod python;
pub mod random;
pub mod raw;
pub mod service;
pub mod slow;
pub mod testbed;
#[cfg(test)]
mod text_file_busy;
pub mod tun;
pub mod unprivileged;
pub mod views;
pub mod wire;

use std::future::Future;

use crafter::{expr::PacketSet, lab::NetNs, layer::Packet};

/// Runs a future to completion on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a tokio runtime").block_on(future)
}

/// Runs the future that `work` returns to completion in `namespace`.
pub fn within<T: Send, F: Future<Output = T>>(namespace: &NetNs, work: impl FnOnce() -> F + Send) -> T {
    namespace.run(|| block_on(work())).expect("enter the namespace")
}

/// The packets of an expression, which must be valid.
pub fn packets(text: &str) -> Vec<Packet> {
    PacketSet::parse(text).expect(text).packets(1 << 20).expect(text).collect()
}
