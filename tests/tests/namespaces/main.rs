//! crafter against real peers, in network namespaces that each test makes for itself: root is needed, but where the table
//! says otherwise. One executable, for each more would link crafter and its dependencies once more; `cargo xtask test`
//! runs each module in a process of its own.
//!
//! | module | what it shows |
//! |---|---|
//! | `clock` | the clock is set forward and back, and nothing that takes time notices; ignored, for virtual machines |
//! | `conversation` | the tutorial's conversation by hand with nginx and dnsmasq, in each mode, and no RST of the kernel's |
//! | `devices` | the same over `lo`, and over a tun, which has no link-layer header |
//! | `engine_pair` | two stream engines on a faulty virtual wire: byte-exact, or an error that is true; no root |
//! | `exchange` | thousands of requests in flight: every reply is matched or accounted for |
//! | `faults` | bad networks, servers that end the connection, sudden death |
//! | `fuzz` | layers, text, capture files and policy, from damaged input: no panic, no byte lost; no root |
//! | `fuzz_service` | damaged messages and packets on the service's sockets: it serves on, and the policy is kept |
//! | `half_open` | what a SYN-ACK leaves half open is reset by crafter before its lease ends, never by the kernel |
//! | `hostile` | a peer that sends malformed segments |
//! | `kernel_age` | crafter works on kernels that it is made for, and refuses older ones with the reason |
//! | `memory_limit` | with too little memory it ends by itself or by SIGKILL, and leaves nothing; ignored, takes a cgroup |
//! | `neighbours` | other programs that hold ports or hooks, and other crafters |
//! | `oracle` | random packets through the kernel half, and through a second reading of the RFCs: no difference |
//! | `scapy_service` | Scapy as user `nobody`, through the service |
//! | `service_clsact` | the service where the kernel has no tcx: filters that outlive their owner are taken down |
//! | `service_faults` | clients that do harm, sudden death, policies that break, interfaces that go |
//! | `service_policy` | every word of the policy: what is refused, and the same thing allowed |
//! | `service_users` | users without privilege: two that wish for the same, what they see of each other, ports free again |
//! | `soak` | a hundred thousand handshakes: memory stays flat, and every packet is accounted for |
//! | `stories` | scripts of single connections on a virtual clock, as packetdrill has them; no root |
//! | `streams` | streams against the kernel's TCP over bad networks: each byte arrives, or both ends are told why not |
//! | `surroundings` | interfaces change, foreign programs share the hooks, maps are full, the owner dies at any moment |
//! | `verdict` | named packets through the programs by BPF_PROG_TEST_RUN: every reason, every branch |

mod clock;
mod conversation;
mod devices;
mod engine_pair;
mod exchange;
mod faults;
mod fuzz;
mod fuzz_service;
mod half_open;
mod hostile;
mod kernel_age;
mod memory_limit;
mod neighbours;
mod oracle;
mod scapy_service;
mod service_clsact;
mod service_faults;
mod service_policy;
mod service_users;
mod soak;
mod stories;
mod streams;
mod surroundings;
mod verdict;
