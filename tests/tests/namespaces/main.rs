//! crafter with real peers, in network namespaces that each test creates: root is needed unless the table says
//! otherwise. All modules are one executable, because each executable links crafter and its dependencies again; `cargo
//! xtask test` runs each module in a process of its own.
//!
//! | module | subject |
//! |---|---|
//! | `clock` | steps of the wall clock do not affect timers; ignored, for virtual machines |
//! | `conversation` | the tutorial's conversation with nginx and dnsmasq in each attach mode, no RST of the kernel |
//! | `devices` | the same over `lo`, and over tun, which has no link-layer header |
//! | `engine_pair` | two stream engines on a faulty virtual wire: byte-exact, or the correct error; no root |
//! | `exchange` | thousands of requests in flight: every reply is matched or accounted for |
//! | `faults` | bad networks, servers that end the connection, killed processes, removed interfaces |
//! | `fuzz` | changed packets, texts, capture files and policies: no panic, no byte lost; no root |
//! | `fuzz_service` | changed messages and packets on the service's sockets: it keeps working and enforces the policy |
//! | `half_open` | half-open connections are reset by crafter before their lease ends, never by the kernel |
//! | `hostile` | a peer that sends malformed segments |
//! | `kernel_age` | crafter works on supported kernels and rejects older ones with the reason |
//! | `memory_limit` | too little memory: it fails or is killed, and leaves nothing; ignored, needs a cgroup |
//! | `coexistence` | other programs that hold ports or hooks, and other instances of crafter |
//! | `oracle` | random packets through the kernel half and through a model of it: no difference |
//! | `ownership` | a lease takes its own packets; those of others reach them |
//! | `scapy_service` | Scapy as user `nobody` through the service |
//! | `service_clsact` | the service on a kernel without tcx: filters that outlive their owner are removed |
//! | `service_faults` | the service: hostile clients, SIGKILL, invalid policies, removed interfaces |
//! | `service_policy` | every key of the policy: what it refuses, and the same request allowed |
//! | `service_users` | unprivileged users of the service: commands, isolation, release of ports |
//! | `soak` | a hundred thousand handshakes: constant memory, every packet accounted for |
//! | `scripted` | scripts of single connections on a virtual clock, in packetdrill's style; no root |
//! | `streams` | streams to the kernel's TCP over bad networks: every byte arrives, or both ends get an error |
//! | `environment` | changing interfaces, foreign programs on the hooks, full maps, exit at any system call |
//! | `verdict` | named packets through the programs by BPF_PROG_TEST_RUN: every reason, every branch |

mod accepted;
mod clock;
mod coexistence;
mod conversation;
mod devices;
mod engine_pair;
mod environment;
mod exchange;
mod faults;
mod fuzz;
mod fuzz_service;
mod half_open;
mod hostile;
mod kernel_age;
mod memory_limit;

mod oracle;
mod ownership;
mod scapy_service;
mod scripted;
mod service_clsact;
mod service_faults;
mod service_policy;
mod service_users;
mod soak;
mod streams;
mod verdict;
