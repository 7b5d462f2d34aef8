//! Matches replies to requests. Sans-IO: its input is packets and times, its output request numbers.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::layer::{MatchKey, Packet};

/// Requests in flight, indexed by the fields that their replies share.
#[derive(Debug, Default)]
pub struct ReplyMatcher {
    requests: VecDeque<Request>,
    /// Requests before these that were removed.
    forgotten: usize,
    /// Requests by the key of their replies, and by the only address that may reply, if there is only one.
    by_key: HashMap<Key, Bucket>,
    answered: usize,
}

type Key = (MatchKey, Option<IpAddr>);

/// Requests with the same key.
#[derive(Debug, Default)]
struct Bucket {
    /// In the order of sending.
    numbers: VecDeque<usize>,
    /// Number of answered requests at the beginning: replies to equal requests usually arrive in their order.
    answered: usize,
}

#[derive(Debug)]
struct Request {
    packet: Packet,
    /// Whether replies are received by a lease.
    leased: bool,
    /// Monotonic and wall-clock time of the last transmission.
    sent: Option<(Instant, Duration)>,
    answers: u32,
}

/// Which request a reply belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// The first reply to the request of this number.
    First(usize),
    /// A further reply to it.
    Further(usize),
    /// To none.
    None,
}

impl ReplyMatcher {
    /// Adds a request, with all fields set; returns its number, counted from 0. `leased`: replies are received by a
    /// lease, not by a tap.
    pub fn submit(&mut self, packet: Packet, leased: bool) -> usize {
        let number = self.len();
        self.by_key.entry(key(&packet)).or_default().numbers.push_back(number);
        self.requests.push_back(Request { packet, leased, sent: None, answers: 0 });
        number
    }

    /// Adds a packet that no reply is matched to; returns its number.
    pub fn submit_unanswerable(&mut self, packet: Packet) -> usize {
        self.requests.push_back(Request { packet, leased: false, sent: None, answers: 0 });
        self.len() - 1
    }

    /// Removes the requests before this number: no reply is matched to them any more.
    pub fn forget(&mut self, before: usize) {
        while self.forgotten < before
            && let Some(request) = self.requests.pop_front()
        {
            // Unanswerable packets are in no bucket.
            if let Entry::Occupied(mut bucket) = self.by_key.entry(key(&request.packet))
                && bucket.get().numbers.front() == Some(&self.forgotten)
            {
                let Bucket { numbers, answered } = bucket.get_mut();
                numbers.pop_front();
                *answered = answered.saturating_sub(1);
                if numbers.is_empty() {
                    bucket.remove();
                }
            }
            self.forgotten += 1;
        }
    }

    fn get(&self, number: usize) -> Option<&Request> {
        self.requests.get(number.checked_sub(self.forgotten)?)
    }

    fn get_mut(&mut self, number: usize) -> Option<&mut Request> {
        self.requests.get_mut(number.checked_sub(self.forgotten)?)
    }

    /// The request was sent at this monotonic and wall-clock time. From now on replies match it.
    pub fn handle_sent(&mut self, number: usize, now: Instant, wall: Duration) {
        if let Some(request) = self.get_mut(number) {
            request.sent = Some((now, wall));
        }
    }

    /// Matches a reply: to the first unanswered request that it can belong to, otherwise to an answered one.
    pub fn handle_reply(&mut self, reply: &Packet, leased: bool) -> Match {
        let answered = |number: usize| self.get(number).is_none_or(|request| request.answers > 0);
        let is_match = |number: usize| {
            self.get(number).is_some_and(|request| {
                request.leased == leased && request.sent.is_some() && reply.answers(&request.packet)
            })
        };
        let mut found = Match::None;
        // Some requests may be answered by one address only, others by any.
        let answerers = [reply.reply_source(), None];
        let key = reply.reply_key();
        for answerer in &answerers[usize::from(answerers[0].is_none())..] {
            let Some(Bucket { numbers, answered: first }) = self.by_key.get(&(key, *answerer)) else { continue };
            let mut rest = numbers.range(*first..).copied();
            if let Some(number) = rest.find(|&number| !answered(number) && is_match(number)) {
                let newly = numbers.range(*first..).take_while(|&&other| other == number || answered(other)).count();
                if let Some(bucket) = self.by_key.get_mut(&(key, *answerer)) {
                    bucket.answered += newly;
                }
                found = Match::First(number);
                break;
            }
            if found == Match::None
                && let Some(number) = numbers.iter().copied().find(|&number| answered(number) && is_match(number))
            {
                found = Match::Further(number);
            }
        }
        if let Match::First(number) | Match::Further(number) = found
            && let Some(request) = self.get_mut(number)
        {
            request.answers += 1;
        }
        self.answered += usize::from(matches!(found, Match::First(_)));
        found
    }

    /// Number of requests, removed ones included.
    pub fn len(&self) -> usize {
        self.forgotten + self.requests.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of requests with a reply.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// A request, as submitted; `None` if it was removed.
    pub fn request(&self, number: usize) -> Option<&Packet> {
        self.get(number).map(|request| &request.packet)
    }

    /// Monotonic and wall-clock time of a request's last transmission.
    pub fn sent(&self, number: usize) -> Option<(Instant, Duration)> {
        self.get(number)?.sent
    }

    /// Numbers of the requests without a reply, in the order of submission.
    pub fn unanswered(&self) -> impl Iterator<Item = usize> {
        let unanswered = self.requests.iter().enumerate().filter(|(_, request)| request.answers == 0);
        unanswered.map(|(place, _)| self.forgotten + place)
    }

    /// The requests without a reply, in the order of submission, of the first `count` requests.
    pub fn into_unanswered(self, count: usize) -> impl Iterator<Item = Packet> {
        let count = count.saturating_sub(self.forgotten);
        self.requests.into_iter().take(count).filter(|request| request.answers == 0).map(|request| request.packet)
    }
}

fn key(request: &Packet) -> Key {
    (request.request_key(), request.expected_source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(text: &str) -> Packet {
        text.parse::<Packet>().unwrap().resolved().unwrap()
    }

    #[test]
    fn replies_match_by_port_whatever_their_order() {
        let mut matcher = ReplyMatcher::default();
        let now = Instant::now();
        for port in 1..=1000 {
            let syn = packet(&format!(
                r#"IP(src="192.0.2.1", dst="192.0.2.2")/TCP(sport=5000, dport={port}, flags="S", seq={port})"#
            ));
            let number = matcher.submit(syn, true);
            matcher.handle_sent(number, now, Duration::ZERO);
        }
        let reset = |port: u16| {
            packet(&format!(
                r#"IP(src="192.0.2.2", dst="192.0.2.1")/TCP(sport={port}, dport=5000, flags="RA", ack={})"#,
                port + 1
            ))
        };
        for port in (1..=1000).rev() {
            assert_eq!(matcher.handle_reply(&reset(port), true), Match::First(usize::from(port) - 1));
        }
        assert_eq!(matcher.handle_reply(&reset(7), true), Match::Further(6));
        assert_eq!(matcher.handle_reply(&reset(1001), true), Match::None);
        assert_eq!(matcher.handle_reply(&reset(7), false), Match::None);
        assert_eq!((matcher.answered(), matcher.unanswered().count()), (1000, 0));
    }

    #[test]
    fn equal_requests_match_one_reply_each() {
        let mut matcher = ReplyMatcher::default();
        let ping = packet(r#"IP(src="192.0.2.1", dst="192.0.2.2")/ICMP(id=7, seq=1)"#);
        let pong = packet(r#"IP(src="192.0.2.2", dst="192.0.2.1")/ICMP(type=0, id=7, seq=1)"#);
        let numbers = [matcher.submit(ping.clone(), true), matcher.submit(ping, true)];
        assert_eq!(matcher.handle_reply(&pong, true), Match::None, "no request is sent yet");
        for number in numbers {
            matcher.handle_sent(number, Instant::now(), Duration::ZERO);
        }
        assert_eq!(matcher.handle_reply(&pong, true), Match::First(0));
        assert_eq!(matcher.handle_reply(&pong, true), Match::First(1));
        assert!(matches!(matcher.handle_reply(&pong, true), Match::Further(_)));
    }

    #[test]
    fn removed_requests_match_no_reply() {
        let mut matcher = ReplyMatcher::default();
        let ping = |seq: u16| packet(&format!(r#"IP(src="192.0.2.1", dst="192.0.2.2")/ICMP(id=7, seq={seq})"#));
        let pong = |seq: u16| packet(&format!(r#"IP(src="192.0.2.2", dst="192.0.2.1")/ICMP(type=0, id=7, seq={seq})"#));
        let mut send = |seq| {
            let number = matcher.submit(ping(seq), true);
            matcher.handle_sent(number, Instant::now(), Duration::ZERO);
        };
        // Sequence numbers repeat.
        (1..=4).chain(1..=4).for_each(&mut send);
        matcher.forget(5);
        assert_eq!((matcher.len(), matcher.unanswered().collect::<Vec<_>>()), (8, vec![5, 6, 7]));
        assert_eq!(matcher.handle_reply(&pong(2), true), Match::First(5));
        assert_eq!(matcher.handle_reply(&pong(1), true), Match::None);
        assert!(matcher.request(4).is_none() && matcher.sent(4).is_none());
        matcher.forget(100);
        assert_eq!((matcher.len(), matcher.answered(), matcher.by_key.len()), (8, 1, 0));
        let number = matcher.submit_unanswerable(ping(9));
        matcher.handle_sent(number, Instant::now(), Duration::ZERO);
        assert_eq!(matcher.handle_reply(&pong(9), true), Match::None);
    }
}
