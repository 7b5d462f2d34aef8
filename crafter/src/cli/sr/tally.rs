//! What `sr` found: the state of each request's target, totals by state, and the ports of each host.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, time::Duration};

use crafter::{
    layer::Packet,
    probe::{Port, Target, TargetState},
};
use serde_json::{Map, Value, json};

use super::super::print;

/// Hosts with ports in the map at most.
const MAX_HOSTS: usize = 32;
/// Ranges of ports in one line of the map at most.
const MAX_RANGES: usize = 12;

/// States by request number.
#[derive(Debug, Default)]
pub struct Tally(Vec<Option<Entry>>);

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
struct Entry {
    target: Target,
    state: TargetState,
    /// When it was sent the last time, wall-clock time since 1970.
    sent: Duration,
}

impl Tally {
    /// Adds a request when it is sent; counts it once.
    pub fn handle_sent(&mut self, number: usize, request: Option<&Packet>, sent: Duration) {
        if self.0.len() <= number {
            self.0.resize(number + 1, None);
        }
        match (&mut self.0[number], request) {
            (Some(entry), _) => entry.sent = sent,
            (new @ None, Some(request)) => {
                *new = Some(Entry { target: Target::read(request), state: TargetState::NoAnswer, sent });
            }
            (None, None) => {}
        }
    }

    /// Sets the state of a request's target by its first reply. Returns whether this is the first reply, and when the
    /// request was sent.
    pub fn handle_reply(&mut self, number: usize, state: TargetState) -> (bool, Option<Duration>) {
        let Some(entry) = self.0.get_mut(number).and_then(Option::as_mut) else { return (false, None) };
        let is_first = entry.state == TargetState::NoAnswer;
        if is_first {
            entry.state = state;
        }
        (is_first, Some(entry.sent))
    }

    /// When a request was sent the last time; `None` if it was not.
    pub fn sent(&self, number: usize) -> Option<Duration> {
        self.0.get(number)?.map(|entry| entry.sent)
    }

    /// Numbers of the first `count` requests without a reply, those that were not sent included, in order.
    pub fn unanswered(&self, count: u64) -> impl Iterator<Item = usize> {
        let has_reply = |entry: &Option<Entry>| entry.is_some_and(|entry| entry.state != TargetState::NoAnswer);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        (0..count).filter(move |&number| !self.0.get(number).is_some_and(has_reply))
    }

    /// The number of requests in each state that occurs, of those that were sent.
    fn totals(&self) -> impl Iterator<Item = (TargetState, u64)> {
        let count = |state| self.0.iter().flatten().filter(|entry| entry.state == state).count() as u64;
        TargetState::ALL.into_iter().map(move |state| (state, count(state)))
    }

    /// Totals by state: `2 open, 65533 closed`; empty if nothing was sent.
    pub fn total_line(&self) -> String {
        let totals: Vec<String> = self
            .totals()
            .filter(|(_, count)| *count > 0)
            .map(|(state, count)| match state {
                TargetState::Answered => format!("{count} with another answer"),
                TargetState::Error => format!("{count} with an ICMP error"),
                TargetState::NoAnswer => format!("{count} without an answer"),
                state => format!("{count} {state}"),
            })
            .collect();
        totals.join(", ")
    }

    /// Totals by state as an object with a number for each state.
    pub fn total_object(&self) -> Value {
        Value::Object(
            self.totals().map(|(state, count)| (state.name().to_owned(), json!(count))).collect::<Map<_, _>>(),
        )
    }

    /// For each host of which several ports were probed and some answered, its ports by state; then how many such hosts
    /// did not answer.
    pub fn map(&self) -> String {
        let mut hosts: BTreeMap<(IpAddr, bool), BTreeMap<usize, Vec<u16>>> = BTreeMap::new();
        for Entry { target, state, .. } in self.0.iter().flatten() {
            let (Some(host), Some(port)) = (target.host, target.port) else { continue };
            let (port, is_udp) = match port {
                Port::Syn(port) | Port::Tcp(port) => (port, false),
                Port::Udp(port) => (port, true),
            };
            let place = TargetState::ALL.iter().position(|other| other == state).unwrap_or_default();
            hosts.entry((host, is_udp)).or_default().entry(place).or_default().push(port);
        }
        hosts.retain(|_, states| states.values().map(Vec::len).sum::<usize>() > 1);
        let silent = TargetState::ALL.len() - 1;
        let (answering, silent): (Vec<_>, Vec<_>) =
            hosts.into_iter().partition(|(_, states)| states.keys().any(|state| *state != silent));
        let mut text = String::new();
        for ((host, is_udp), states) in answering.iter().take(MAX_HOSTS) {
            let count: usize = states.values().map(Vec::len).sum();
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(text, "{host}: {count} {} ports", if *is_udp { "UDP" } else { "TCP" });
            for (state, ports) in states {
                let state = TargetState::ALL[*state].to_string();
                let _ = writeln!(text, "  {state:<12}  {}", ranges(ports.clone()));
            }
        }
        if answering.len() > MAX_HOSTS {
            let _ = writeln!(text, "and {} more hosts with answers", answering.len() - MAX_HOSTS);
        }
        if !silent.is_empty() {
            let _ = writeln!(text, "{} without an answer", print::counted(silent.len() as u64, "host"));
        }
        text
    }
}

/// `22, 80-89, 443`, with at most [`MAX_RANGES`] ranges.
fn ranges(mut ports: Vec<u16>) -> String {
    ports.sort_unstable();
    ports.dedup();
    let ranges: Vec<String> = ports
        .chunk_by(|a, b| a.checked_add(1) == Some(*b))
        .map(|range| match *range {
            [first, .., last] => format!("{first}-{last}"),
            [port] => port.to_string(),
            [] => String::new(),
        })
        .collect();
    match ranges.get(..MAX_RANGES) {
        Some(first) if ranges.len() > MAX_RANGES => {
            format!("{} and {} more ranges ({} ports)", first.join(", "), ranges.len() - MAX_RANGES, ports.len())
        }
        _ => ranges.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_grouped_by_host_and_state() {
        let mut tally = Tally::default();
        for port in 1..=1000_u16 {
            for (host, at) in [("192.0.2.1", 0), ("192.0.2.9", 1)] {
                let request: Packet = format!(r#"IP(dst="{host}")/TCP(dport={port}, flags="S")"#).parse().unwrap();
                let number = (usize::from(port) - 1) * 2 + at;
                tally.handle_sent(number, Some(&request), Duration::ZERO);
                let state = if [22, 80].contains(&port) { TargetState::Open } else { TargetState::Closed };
                if at == 0 && port != 500 {
                    assert_eq!(tally.handle_reply(number, state), (true, Some(Duration::ZERO)));
                    assert!(!tally.handle_reply(number, TargetState::Answered).0);
                }
            }
        }
        assert_eq!(tally.total_line(), "2 open, 997 closed, 1001 without an answer");
        assert_eq!(tally.total_object()["closed"], 997);
        assert_eq!(tally.unanswered(2001).count(), 1002, "one was not sent");
        let map = "192.0.2.1: 1000 TCP ports\n  open          22, 80\n  closed        1-21, 23-79, 81-499, 501-1000\n  \
                   no answer     500\n1 host without an answer\n";
        assert_eq!(tally.map(), map);
    }

    #[test]
    fn many_ranges_are_cut() {
        assert_eq!(ranges(vec![3, 1, 2, 7, 65_535, 65_534]), "1-3, 7, 65534-65535");
        let text = ranges((0..100).map(|port| port * 2).collect());
        assert!(text.ends_with("20, 22 and 88 more ranges (100 ports)"), "{text}");
    }
}
