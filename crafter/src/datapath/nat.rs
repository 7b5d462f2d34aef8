//! Whether this network namespace translates addresses. Translated flows have ports that no socket reserves, and XDP sees
//! a packet before conntrack does: a lease of such a port would take the packets of the flow.

use std::{fs, io};

use nix::sys::socket::SockProtocol;

use super::netlink;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN` (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_CHAIN: u16 = 10 << 8 | 4;
/// `struct nfgenmsg`, at the beginning of each message: family, version, resource id.
const HEADER: usize = 4;
/// `NFTA_CHAIN_TABLE`, `NFTA_CHAIN_NAME`, `NFTA_CHAIN_TYPE`.
const TABLE: u16 = 1;
const NAME: u16 = 3;
const TYPE: u16 = 7;

/// The tables of this thread's network namespace that translate addresses: chains of nftables (those of `iptables-nft`
/// are among them) as `nftables TABLE CHAIN`, and the `nat` tables of `iptables-legacy`.
///
/// # Errors
/// If nftables does not say, mostly for want of CAP_NET_ADMIN. A kernel without nftables has no such chains.
pub fn tables() -> io::Result<Vec<String>> {
    let mut found: Vec<String> = [("ip_tables_names", "iptables nat"), ("ip6_tables_names", "ip6tables nat")]
        .into_iter()
        .filter(|(file, _)| {
            // Listed once the table is in use, with or without rules.
            let names = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
            names.lines().any(|name| name == "nat")
        })
        .map(|(_, name)| name.to_owned())
        .collect();
    match netlink::exchange(SockProtocol::NetlinkNetFilter, GET_CHAIN, libc::NLM_F_DUMP as u16, &[0; HEADER]) {
        Ok(chains) => found.extend(chains.iter().filter_map(|chain| nat_chain(chain.get(HEADER..)?))),
        // nfnetlink_rcv_msg(): no such subsystem.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {}
        Err(error) => return Err(error),
    }
    Ok(found)
}

/// The table and name of a chain whose type is `nat`.
fn nat_chain(attributes: &[u8]) -> Option<String> {
    let (mut table, mut name, mut is_nat) = (None, None, false);
    let mut rest = attributes;
    while let [a, b, c, d, ..] = *rest {
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]) & 0x3fff);
        let value = rest.get(4..length)?;
        let text = || String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
        match kind {
            TABLE => table = Some(text()),
            NAME => name = Some(text()),
            TYPE => is_nat = value.starts_with(b"nat"),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    is_nat.then(|| format!("nftables {} {}", table.unwrap_or_default(), name.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::lab::NetNs;

    /// Rules of both kinds of iptables in a namespace are found, and those of a filter are not.
    #[test]
    fn rules_of_iptables_are_found() {
        for (program, wanted) in [("iptables-nft", "nftables nat POSTROUTING"), ("iptables-legacy", "iptables nat")] {
            NetNs::new()
                .expect("a namespace")
                .run(|| {
                    let add = |table: &str, chain: &str, target: &str| {
                        let status = Command::new(program)
                            .args(["-t", table, "-A", chain, "-j", target])
                            .status()
                            .expect(program);
                        assert!(status.success(), "{program} -t {table}");
                    };
                    assert_eq!(tables().expect("the tables"), Vec::<String>::new());
                    add("filter", "OUTPUT", "ACCEPT");
                    assert_eq!(tables().expect("the tables"), Vec::<String>::new(), "{program}, filter");
                    add("nat", "POSTROUTING", "MASQUERADE");
                    let found = tables().expect("the tables");
                    assert!(found.iter().any(|table| table == wanted), "{program}: {found:?}");
                })
                .expect("enter the namespace");
        }
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn only_chains_of_nat_are_found() {
        let chain = |kind: &[u8]| [attribute(1, b"office\0"), attribute(3, b"out\0"), attribute(7, kind)].concat();
        assert_eq!(nat_chain(&chain(b"nat\0")).as_deref(), Some("nftables office out"));
        assert_eq!(nat_chain(&chain(b"filter\0")), None);
        // A chain without a hook has no type. A length beyond the end, and one of zero, end the walk.
        assert_eq!(nat_chain(&[attribute(1, b"office\0"), attribute(3, b"out\0")].concat()), None);
        assert_eq!(nat_chain(&[200, 0, 7, 0, b'n']), None);
        assert_eq!(nat_chain(&[0; 8]), None);
    }
}
