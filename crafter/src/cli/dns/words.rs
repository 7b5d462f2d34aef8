//! The positional arguments, in any order as for `dig`: a name, a type, a class, `@server`.

use std::net::{IpAddr, SocketAddr};

use crafter::{Error, Result};
use hickory_proto::rr::{DNSClass, RecordType};

use super::record;
use crate::cli::zone;

/// The arguments of a query.
#[derive(Debug, PartialEq, Eq)]
pub struct Words<'w> {
    pub name: &'w str,
    pub kind: Option<RecordType>,
    pub class: Option<DNSClass>,
    pub server: Option<SocketAddr>,
}

impl<'w> Words<'w> {
    /// Reads the words. If every word is a type or a class, the first is the name.
    ///
    /// # Errors
    /// [`Error::Invalid`] for words that do not form one query.
    pub fn read(words: &'w [String]) -> Result<Self> {
        let mut server = None;
        let mut rest = Vec::new();
        for word in words {
            if let Some(address) = word.strip_prefix('@') {
                let read = parse_server(address).map_err(|reason| Error::invalid(format!("'{word}'"), reason))?;
                if server.replace(read).is_some() {
                    return Err(Error::invalid(format!("'{word}'"), "a second server; give only one"));
                }
            } else if word.starts_with('+') {
                let reason = "dig options with a leading + are not supported; see `crafter dns --help` for the options";
                return Err(Error::invalid(format!("'{word}'"), reason));
            } else {
                rest.push(word.as_str());
            }
        }
        let is_name = |word: &&&str| !is_type(word) && !is_class(word);
        let name = match (rest.iter().find(is_name).or(rest.first()), &rest[..]) {
            (None, _) => return Err(Error::invalid("NAME", "missing; give the name to query, e.g. example.org")),
            (Some(_), [one, other]) if is_name(&one) && is_name(&other) => {
                let reason =
                    format!("neither '{one}' nor '{other}' is a record type; query one name at a time, e.g. {one} MX");
                return Err(Error::invalid("TYPE", reason));
            }
            (Some(name), _) => *name,
        };
        let (mut kind, mut class) = (None, None);
        let mut is_left = true;
        for word in rest {
            if is_left && word == name {
                is_left = false;
            } else if kind.is_none() && is_type(word) {
                kind = Some(record::parse_type(word).map_err(|reason| Error::invalid("TYPE", reason))?);
            } else if class.is_none() && is_class(word) {
                class = Some(record::parse_class(word).map_err(|reason| Error::invalid("CLASS", reason))?);
            } else {
                let reason =
                    format!("'{word}' is one argument too many; give NAME, TYPE, CLASS and @SERVER at most once each");
                return Err(Error::invalid("NAME", reason));
            }
        }
        Ok(Self { name, kind, class, server })
    }
}

/// Whether a word is the name of a type, also of one that cannot be queried.
fn is_type(word: &str) -> bool {
    let upper = word.to_ascii_uppercase();
    let number = upper.strip_prefix("TYPE").is_some_and(|number| number.parse::<u16>().is_ok());
    number || upper.parse::<RecordType>().is_ok()
}

/// Whether a word is the name of a class, also of one that cannot be queried.
fn is_class(word: &str) -> bool {
    record::class(word).is_some()
}

/// Reads the address of a server, with or without a port.
///
/// # Errors
/// A sentence for clap.
pub fn parse_server(text: &str) -> Result<SocketAddr, String> {
    let (bare, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((bare, "")) => (bare, Some(53)),
        Some((bare, port)) => (bare, port.strip_prefix(':').and_then(|port| port.parse().ok())),
        None => (text, Some(53)),
    };
    let scoped = zone::parse(bare).map_err(|error| error.to_string())?.map(SocketAddr::V6);
    let address = bare.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 0)).or(scoped);
    let server = address.zip(port).map(|(mut address, port)| {
        address.set_port(port);
        address
    });
    // An IPv4 address with a port.
    match server.or_else(|| text.parse::<SocketAddr>().ok()) {
        Some(server) if server.port() > 0 => Ok(server),
        _ => Err("not an IP address; give one, with or without a port, e.g. 192.0.2.1 or [2001:db8::1]:53".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<(String, Option<RecordType>, Option<String>)> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Words::read(&words)
            .map(|Words { name, kind, server, .. }| (name.to_owned(), kind, server.map(|s| s.to_string())))
    }

    #[test]
    fn words_in_any_order() {
        use RecordType::{A, AAAA, MX};
        let server = Some("192.0.2.1:53".to_owned());
        for line in
            ["@192.0.2.1 lab.test mx", "lab.test @192.0.2.1 MX", "mx lab.test @192.0.2.1", "mx @192.0.2.1 lab.test"]
        {
            assert_eq!(read(line).unwrap(), ("lab.test".to_owned(), Some(MX), server.clone()), "{line}");
        }
        for (line, name, kind) in [
            ("lab.test", "lab.test", None),
            ("mx", "mx", None),
            ("mx a", "mx", Some(A)),
            ("192.0.2.1 aaaa", "192.0.2.1", Some(AAAA)),
            ("type28 x", "x", Some(AAAA)),
        ] {
            assert_eq!(read(line).unwrap(), (name.to_owned(), kind, None), "{line}");
        }
    }

    #[test]
    fn classes_in_any_position() {
        use RecordType::{A, ANY, MX, TXT};
        let read = |line: &'static str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            Words::read(&words).map(|Words { name, kind, class, .. }| (name.to_owned(), kind, class))
        };
        for (line, name, kind, class) in [
            ("lab.test in", "lab.test", None, Some(DNSClass::IN)),
            ("lab.test IN MX", "lab.test", Some(MX), Some(DNSClass::IN)),
            ("mx in lab.test", "lab.test", Some(MX), Some(DNSClass::IN)),
            ("ch txt version.bind", "version.bind", Some(TXT), Some(DNSClass::CH)),
            ("version.bind chaos txt", "version.bind", Some(TXT), Some(DNSClass::CH)),
            ("lab.test class4", "lab.test", None, Some(DNSClass::HS)),
            // ANY is a type and a class; like dig, the type is preferred.
            ("lab.test any in", "lab.test", Some(ANY), Some(DNSClass::IN)),
            ("lab.test any", "lab.test", Some(ANY), None),
            // Names that are also types or classes.
            ("in", "in", None, None),
            ("ch a in", "ch", Some(A), Some(DNSClass::IN)),
            ("in in", "in", None, Some(DNSClass::IN)),
        ] {
            assert_eq!(read(line).unwrap(), (name.to_owned(), kind, class), "{line}");
        }
        for (line, what) in [
            ("lab.test mx any", "CLASS: no server answers for class ANY"),
            ("lab.test any any", "CLASS: no server answers for class ANY"),
            ("lab.test none", "CLASS: class NONE is for updates"),
            ("lab.test class255", "CLASS: no server"),
            ("lab.test class9", "CLASS: class 9 cannot be queried"),
            ("lab.test in ch", "NAME: 'ch' is one argument too many"),
            ("lab.test a mx", "NAME: 'mx' is one argument too many"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.to_string().starts_with(what), "{line}: {error}");
        }
    }

    #[test]
    fn invalid_combinations_are_rejected() {
        for (line, what) in [
            ("@192.0.2.1", "NAME: "),
            ("a.test b.test", "TYPE: neither"),
            ("a.test mx b.test", "NAME: 'b.test' is"),
            ("a.test axfr", "TYPE: zone transfers"),
            ("@localhost a.test", "'@localhost': "),
            ("@192.0.2.1 @192.0.2.2 a", "'@192.0.2.2': "),
            ("a.test +short", "'+short': "),
        ] {
            let error = read(line).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }) && error.to_string().starts_with(what), "{line}: {error}");
        }
    }

    #[test]
    fn server_addresses_with_and_without_port() {
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        ] {
            assert_eq!(parse_server(text), Ok(address.parse().unwrap()), "{text}");
        }
        for text in ["", "localhost", "192.0.2.1:0", "192.0.2.1:99999", "192.0.2"] {
            assert!(parse_server(text).is_err(), "{text}");
        }
    }
}
