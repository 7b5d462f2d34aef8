//! Integration tests of crafter: the public interface of the library, and the built program. They are one executable,
//! because each executable links crafter and its dependencies again; `cargo xtask test` runs each module in its own
//! process.
//!
//! | module | what it tests | needs |
//! |---|---|---|
//! | `captures` | capture files, compared with tshark and capinfos; reading a capture while it is written | |
//! | `cli` | every command with a network, against real peers in a lab; its `snapshots`: help, errors and examples | root; snapshots: none |
//! | `corpora` | each packet of tcpdump's and Scapy's test captures is rebuilt byte for byte, also from its text form | the captures |
//! | `doctor` | `crafter doctor` with all capabilities, with some, and with none | root |
//! | `examples` | each example against the lab's servers | root |
//! | `inventory` | lists in the documents agree with the source | |
//! | `lab` | the lab through the library: network, servers, tap, clean-up | root |
//! | `lab_run` | `crafter lab run`: exit codes, signals, output, clean-up | root |
//! | `layer_allocations` | building packets into a reused buffer allocates nothing | |
//! | `layer_dissectors` | ICMP extensions, MPLS, HTTP, DNS over TCP and fragments, compared with tshark and Scapy | |
//! | `layers` | `crafter build`, `show` and `ls`, compared with tshark and Scapy | |
//! | `policy` | `crafter policy check` and `explain` | |
//! | `policy_allocations` | a decision of the policy about a packet allocates nothing | |
//! | `module_order` | modules of crafter import only modules above them in ARCHITECTURE.md | |
//! | `systemd_units` | the systemd units, checked by systemd's tools | |
//!
//! `allocations` is the global allocator of this executable, which counts the allocations of the calling thread;
//! `canary` detects when the kernel has destroyed a network namespace.

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
mod layer_dissectors;
mod layers;
mod module_order;
mod policy;
mod policy_allocations;

mod systemd_units;
