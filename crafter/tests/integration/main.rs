//! crafter from outside: the library by its public items, and the built program as its users meet it. One executable,
//! for each more would link crafter and its dependencies once more; `cargo xtask test` runs each module in a process of
//! its own.
//!
//! | module | what it shows | needs |
//! |---|---|---|
//! | `captures` | capture files as tshark and capinfos see them, and streams that are read while they are written | |
//! | `cli` | every command with a network, against real peers in a lab | root |
//! | `corpora` | every packet of tcpdump's and Scapy's test captures, built again byte for byte, also from its text | the captures |
//! | `doctor` | what `crafter doctor` says with all capabilities, with some, and with none | root |
//! | `examples` | each example, run against the lab's servers | root |
//! | `inventory` | what the documents list is what the source has | |
//! | `lab` | the lab as a library: network, servers, tap, and that nothing stays behind | root |
//! | `lab_run` | `crafter lab run`: exit codes, signals, output, and that nothing stays behind | root |
//! | `layer_allocations` | building packets into a reused buffer allocates nothing | |
//! | `layer_judges` | ICMP extensions, MPLS, HTTP, DNS over TCP and fragments as tshark and Scapy see them | |
//! | `layers` | `crafter build`, `show` and `ls`, and their bytes as tshark and Scapy see them | |
//! | `policy` | `crafter policy check` and `explain` | |
//! | `policy_allocations` | judging packets by the policy allocates nothing | |
//! | `rooms` | the order of rooms on ARCHITECTURE.md is that of imports | |
//! | `units` | the units of systemd, judged by systemd's own tools | |
//!
//! `allocations` counts allocations of a thread by a global allocator, which serves all modules; `canary` tells when the
//! kernel has destroyed a network namespace.

mod allocations;
mod canary;
mod captures;
mod cli;
mod corpora;
mod doctor;
mod examples;
mod inventory;
mod lab;
mod lab_run;
mod layer_allocations;
mod layer_judges;
mod layers;
mod policy;
mod policy_allocations;
mod rooms;
mod units;
