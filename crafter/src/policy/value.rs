//! Reads the values of a policy's text.

use std::{net::IpAddr, ops::RangeInclusive};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::{Spanned, de::DeValue};

use super::{
    ports::Ports,
    reader::Reader,
    rule::Protocols,
    targets::{Target, Targets},
};
use crate::{datapath::peers::Peers, layer::nearest};

/// A value and its place in the text.
#[derive(Clone, Copy)]
pub(super) struct Value<'v, 't>(pub &'v Spanned<DeValue<'t>>);

impl Value<'_, '_> {
    /// The byte offset of the value.
    pub fn at(self) -> usize {
        self.0.span().start
    }
}

/// The kind of a value, for messages.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(true) => "true",
        DeValue::Boolean(false) => "false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

type Read<T> = Result<T, String>;

impl Reader<'_> {
    pub fn flag(&mut self, value: Value<'_, '_>) -> Option<bool> {
        match value.0.get_ref() {
            DeValue::Boolean(flag) => return Some(*flag),
            other => self.problem(value.at(), format!("true or false, not {}", kind(other))),
        }
        None
    }

    pub fn peers(&mut self, value: Value<'_, '_>) -> Peers {
        let names = [Peers::Flow, Peers::Address, Peers::Any].map(Peers::name);
        let message = match value.0.get_ref() {
            DeValue::String(text) => match text.parse() {
                Ok(peers) => return peers,
                Err(_) => format!("'{text}' is none of flow, address, any{}", nearest(text, names.into_iter())),
            },
            other => format!("\"flow\", \"address\" or \"any\", not {}", kind(other)),
        };
        self.problem(value.at(), message);
        Peers::Flow
    }

    pub fn text(&mut self, value: Value<'_, '_>) -> Option<String> {
        match text(value.0.get_ref()) {
            Ok(text) => return Some(text.to_owned()),
            Err(message) => self.problem(value.at(), message),
        }
        None
    }

    /// A number in `range`; `None` for `unlimited`, and after a problem.
    pub fn number(&mut self, value: Value<'_, '_>, range: RangeInclusive<u32>, unlimited: bool) -> Option<u32> {
        let also = if unlimited { " or \"unlimited\"" } else { "" };
        let message = match value.0.get_ref() {
            DeValue::Integer(number) => {
                match u32::from_str_radix(number.as_str(), number.radix()).ok().filter(|number| range.contains(number))
                {
                    Some(number) => return Some(number),
                    None => format!("a whole number from {} to {}{also}, not {number}", range.start(), range.end()),
                }
            }
            DeValue::String(text) if unlimited && text == "unlimited" => return None,
            DeValue::String(text) => format!("a whole number{also}, not {text:?}"),
            other => format!("a whole number{also}, not {}", kind(other)),
        };
        self.problem(value.at(), message);
        None
    }

    /// The valid values of a list.
    pub fn each<T>(&mut self, value: Value<'_, '_>, read: impl Fn(&DeValue<'_>) -> Read<T>) -> Vec<T> {
        self.each_placed(value, read).into_iter().map(|(_, value)| value).collect()
    }

    fn each_placed<T>(&mut self, value: Value<'_, '_>, read: impl Fn(&DeValue<'_>) -> Read<T>) -> Vec<(usize, T)> {
        let Some(list) = value.0.get_ref().as_array() else {
            self.problem(value.at(), format!("a list in [ ], not {}", kind(value.0.get_ref())));
            return Vec::new();
        };
        if list.is_empty() {
            self.warning(value.at(), "an empty list allows nothing; remove the key to lift the restriction");
        }
        let mut values = Vec::with_capacity(list.len());
        for item in list {
            match read(item.get_ref()) {
                Ok(value) => values.push((item.span().start, value)),
                Err(message) => self.problem(item.span().start, message),
            }
        }
        values
    }

    pub fn ports(&mut self, value: Value<'_, '_>) -> Ports {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for (at, range) in self.each_placed(value, ports) {
            if ranges.iter().any(|other| other.start() <= range.end() && range.start() <= other.end()) {
                self.warning(at, "these ports overlap with others of the list");
            }
            // Compared with at most 64 ranges: a longer list is merged as it grows.
            if ranges.len() >= 64 {
                ranges = Ports::new(ranges).ranges().collect();
            }
            ranges.push(range);
        }
        Ports::new(ranges)
    }

    pub fn protocols(&mut self, value: Value<'_, '_>) -> Protocols {
        let mut protocols = Protocols::default();
        for name in self.each(value, protocol) {
            match name {
                "tcp" => protocols.tcp = true,
                "udp" => protocols.udp = true,
                "icmp" => protocols.icmp = true,
                _ => protocols.any = true,
            }
        }
        protocols
    }

    pub fn targets(&mut self, value: Value<'_, '_>) -> Targets {
        let mut targets = Vec::new();
        let Some(list) = value.0.get_ref().as_array() else {
            self.problem(value.at(), format!("a list in [ ], not {}", kind(value.0.get_ref())));
            return Targets::default();
        };
        if list.is_empty() && self.key != "deny" {
            self.warning(value.at(), "an empty list allows nothing; remove the key to lift the restriction");
        }
        for item in list {
            self.target(Value(item), &mut targets);
        }
        Targets::new(targets)
    }

    /// A prefix, or `{ prefix = "...", ports = [...] }`.
    fn target(&mut self, value: Value<'_, '_>, targets: &mut Vec<Target>) {
        let line = self.line_and_column(value.at()).0;
        let DeValue::Table(table) = value.0.get_ref() else {
            match prefixes(value.0.get_ref()) {
                Ok(read) => targets.extend(read.into_iter().map(|prefix| Target { prefix, ports: None, line })),
                Err(message) => self.problem(value.at(), message),
            }
            return;
        };
        let (mut read, mut ports) = (None, None);
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "prefix" => match prefixes(value.get_ref()) {
                    Ok(prefixes) => read = Some(prefixes),
                    Err(message) => self.problem(value.span().start, message),
                },
                "ports" => ports = Some(self.ports(Value(value))),
                unknown => {
                    let near = nearest(unknown, ["prefix", "ports"].into_iter());
                    self.problem(key.span().start, format!("a destination has no key '{unknown}'{near}"));
                }
            }
        }
        if !table.contains_key("prefix") {
            self.problem(value.at(), "{ prefix = \"192.0.2.0/24\", ports = [80] } is needed; prefix is missing");
        }
        let one = |prefix| Target { prefix, ports: ports.clone(), line };
        targets.extend(read.into_iter().flatten().map(one));
    }
}

fn text<'v>(value: &'v DeValue<'_>) -> Read<&'v str> {
    value.as_str().ok_or_else(|| format!("a text in quotes, not {}", kind(value)))
}

/// A name of an interface. Linux allows at most 15 bytes, neither `/` nor white space (`dev_valid_name`).
pub(super) fn interface(value: &DeValue<'_>) -> Read<String> {
    let name = text(value)?;
    let begin = name.strip_suffix('*').unwrap_or(name);
    let wrong = |letter: char| letter == '/' || letter == ':' || letter == '*' || letter.is_whitespace();
    if name.is_empty() || begin.len() > 15 || begin.contains(wrong) {
        return Err(format!(
            "{name:?} is not a valid name of an interface, such as \"eth0\" or \"eth*\" (* at the end only)"
        ));
    }
    Ok(name.to_owned())
}

fn protocol(value: &DeValue<'_>) -> Read<&'static str> {
    const KNOWN: [&str; 4] = ["tcp", "udp", "icmp", "any"];
    let name = text(value)?;
    KNOWN
        .into_iter()
        .find(|known| *known == name)
        .ok_or_else(|| format!("there is no protocol '{name}'{}", nearest(name, KNOWN.into_iter())))
}

/// A port or a range: 80, "80" or "80-90".
fn ports(value: &DeValue<'_>) -> Read<RangeInclusive<u16>> {
    let wrong = |what: &str| format!("a port from 0 to 65535 such as 80, or a range such as \"8000-8099\", not {what}");
    match value {
        DeValue::Integer(number) => match u16::from_str_radix(number.as_str(), number.radix()) {
            Ok(port) => Ok(port..=port),
            Err(_) => Err(wrong(&number.to_string())),
        },
        DeValue::String(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let port = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong(&format!("{text:?}")));
            let (first, last) = (port(first)?, port(last)?);
            if first > last {
                return Err(format!("{text:?} ends before it begins; did you mean \"{last}-{first}\"?"));
            }
            Ok(first..=last)
        }
        other => Err(wrong(kind(other))),
    }
}

/// A prefix or an address; `any` means all addresses of both families.
fn prefixes(value: &DeValue<'_>) -> Read<Vec<IpNet>> {
    let text = text(value)?;
    if text == "any" {
        return Ok(vec![Ipv4Net::default().into(), Ipv6Net::default().into()]);
    }
    let prefix = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(prefix), _) => prefix,
        (_, Ok(address)) => address.into(),
        _ => {
            return Err(format!(
                "a prefix such as \"192.0.2.0/24\" or \"2001:db8::/32\", an address or \"any\", not {text:?}"
            ));
        }
    };
    if prefix != prefix.trunc() {
        return Err(format!("{text} has bits set beyond its prefix length; did you mean \"{}\"?", prefix.trunc()));
    }
    if let IpAddr::V6(address) = prefix.network()
        && let (Some(v4), 96..) = (address.to_ipv4_mapped(), prefix.prefix_len())
    {
        let v4 = Ipv4Net::new(v4, prefix.prefix_len() - 96).map_err(|error| error.to_string())?;
        return Err(format!("{text} is IPv4-mapped; write \"{v4}\""));
    }
    Ok(vec![prefix])
}
