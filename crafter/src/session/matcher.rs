//! Which reply belongs to which request. Sans-IO: packets and times come in, numbers go out.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::layer::{AnswerKey, Packet};

/// Requests in flight, found by what their answers say.
#[derive(Debug, Default)]
pub struct Matcher {
    requests: Vec<Request>,
    /// Requests by what an answer to them must have, and by who alone may answer.
    by_key: HashMap<(AnswerKey, Option<IpAddr>), Bucket>,
    answered: usize,
}

/// Requests that the same answers may belong to, in the order of sending.
#[derive(Debug, Default)]
struct Bucket {
    numbers: Vec<u32>,
    /// Those before it are answered: of thousands alike, the next answer is mostly to the next one.
    open: usize,
}

#[derive(Debug)]
struct Request {
    packet: Packet,
    /// Whether its answers come over a lease.
    leased: bool,
    sent: Option<(Instant, Duration)>,
    answers: u32,
}

/// Whose answer a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// The first answer to the request of this number.
    First(usize),
    /// A further answer to it.
    Further(usize),
    /// Nobody's.
    Nobody,
}

impl Matcher {
    /// Adds a request, all of whose fields are set; its number, counted from 0. `leased` says whether its answers come
    /// over a lease.
    pub fn submit(&mut self, packet: Packet, leased: bool) -> usize {
        let number = self.requests.len();
        let key = (packet.answer_key(), packet.answerer());
        self.by_key.entry(key).or_default().numbers.push(number as u32);
        self.requests.push(Request { packet, leased, sent: None, answers: 0 });
        number
    }

    /// The request was sent, at this time by both clocks (the second since 1970). From now on it can be answered.
    pub fn handle_sent(&mut self, number: usize, now: Instant, wall: Duration) {
        if let Some(request) = self.requests.get_mut(number) {
            request.sent = Some((now, wall));
        }
    }

    /// Whose answer `reply` is; of several it may answer, the first that has none.
    pub fn handle_reply(&mut self, reply: &Packet, leased: bool) -> Match {
        let key = reply.answered_key();
        let mut further = None;
        // Some may be answered by one address only, others by any.
        for answerer in [reply.answered_as(), None] {
            let Some(bucket) = self.by_key.get_mut(&(key, answerer)) else { continue };
            let requests = &mut self.requests;
            let is_answered = |number: u32| requests[number as usize].answers > 0;
            bucket.open += bucket.numbers[bucket.open..].iter().take_while(|number| is_answered(**number)).count();
            let is_match = |number: u32| {
                let request = &requests[number as usize];
                request.leased == leased && request.sent.is_some() && reply.answers(&request.packet)
            };
            let (before, open) = bucket.numbers.split_at(bucket.open);
            let first = open.iter().copied().find(|&number| !is_answered(number) && is_match(number));
            if let Some(number) = first {
                requests[number as usize].answers = 1;
                self.answered += 1;
                return Match::First(number as usize);
            }
            let mut answered = before.iter().chain(open).copied();
            further = further.or_else(|| answered.find(|&number| is_answered(number) && is_match(number)));
            if reply.answered_as().is_none() {
                break;
            }
        }
        let Some(number) = further else { return Match::Nobody };
        let number = number as usize;
        self.requests[number].answers += 1;
        Match::Further(number)
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// How many of them have an answer.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// A request, as submitted.
    pub fn request(&self, number: usize) -> Option<&Packet> {
        self.requests.get(number).map(|request| &request.packet)
    }

    /// When it was sent for the last time, by both clocks.
    pub fn sent(&self, number: usize) -> Option<(Instant, Duration)> {
        self.requests.get(number)?.sent
    }

    /// The numbers of those without an answer, in the order of submission.
    pub fn unanswered(&self) -> impl Iterator<Item = usize> {
        self.requests.iter().enumerate().filter(|(_, request)| request.answers == 0).map(|(number, _)| number)
    }

    /// Takes those without an answer.
    pub fn into_unanswered(self) -> impl Iterator<Item = Packet> {
        self.requests.into_iter().filter(|request| request.answers == 0).map(|request| request.packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(text: &str) -> Packet {
        text.parse::<Packet>().unwrap().resolved().unwrap()
    }

    #[test]
    fn replies_find_their_requests() {
        let mut matcher = Matcher::default();
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
        assert_eq!(matcher.handle_reply(&reset(1001), true), Match::Nobody);
        assert_eq!(matcher.handle_reply(&reset(7), false), Match::Nobody);
        assert_eq!((matcher.answered(), matcher.unanswered().count()), (1000, 0));
    }

    #[test]
    fn the_same_request_twice_takes_two_answers() {
        let mut matcher = Matcher::default();
        let ping = packet(r#"IP(src="192.0.2.1", dst="192.0.2.2")/ICMP(id=7, seq=1)"#);
        let pong = packet(r#"IP(src="192.0.2.2", dst="192.0.2.1")/ICMP(type=0, id=7, seq=1)"#);
        let numbers = [matcher.submit(ping.clone(), true), matcher.submit(ping, true)];
        assert_eq!(matcher.handle_reply(&pong, true), Match::Nobody, "nothing is sent yet");
        for number in numbers {
            matcher.handle_sent(number, Instant::now(), Duration::ZERO);
        }
        assert_eq!(matcher.handle_reply(&pong, true), Match::First(0));
        assert_eq!(matcher.handle_reply(&pong, true), Match::First(1));
        assert!(matches!(matcher.handle_reply(&pong, true), Match::Further(_)));
    }
}
