//! Names, parameters and help of the functions, and the arguments of a call.

use std::time::Duration;

use crate::{
    error::Error,
    expr::{
        access,
        evaluate::{Called, Given},
        fault,
        object::{Object, Received},
    },
    layer::{Packet, nearest},
    session::Pace,
};

/// An error at a byte offset of a text.
pub(super) type Fault = fault::Fault<Error>;

/// A function of the shell.
#[derive(Debug)]
pub(crate) struct Function {
    pub name: &'static str,
    /// As in the help: `packet, timeout=2`. Parameters with a default are optional.
    pub parameters: &'static str,
    pub doc: &'static str,
}

const fn function(name: &'static str, parameters: &'static str, doc: &'static str) -> Function {
    Function { name, parameters, doc }
}

const SR: &str = "packets, timeout=2, retry=0, rate=None, multi=False, inter=None, iface=None, verbose=None";
const SNIFF: &str = "filter=None, count=None, timeout=None, iface=None, verbose=None";
const SEND: &str = "packets, count=1, rate=None, inter=None, loop=0, iface=None, verbose=None";
const SR1: &str = "packet, timeout=2, retry=0, iface=None, verbose=None";

/// All functions, in the order of the help.
pub(crate) const FUNCTIONS: &[Function] = &[
    function("sr1", SR1, "Send a packet; returns the first reply, or None"),
    function("sr", SR, "Send packets; returns (answered, unanswered). Pairs have .request .reply .rtt .time"),
    function("send", SEND, "Send packets, count times or with loop=1 until Ctrl-C; returns how many were sent"),
    function("sniff", SNIFF, "Capture packets by a filter of tcpdump until count or timeout"),
    function("srp1", SR1, "Same as sr1, which sends frames too"),
    function("srp", SR, "Same as sr, which sends frames too"),
    function("sendp", SEND, "Same as send, which sends frames too"),
    function("print", "value='', ...", "Print values, a text without quotes"),
    function("show", "value", "All fields"),
    function("summary", "value", "One line per packet"),
    function("hexdump", "value", "The bytes"),
    function("ls", "of=None", "The layers, or the fields of a layer or packet"),
    function("len", "value", "Bytes of a packet, packets of a set, elements of a list"),
    function("raw", "packet", "A packet's bytes"),
    function("bytes", "packet", "Same as raw"),
    function("recompute", "packet", "The packet with lengths and checksums unset, to be computed again"),
    function("fuzz", "packet, seed=None, all=False", "The packet with random values in unset fields"),
    function("answers", "answer, request", "Whether a packet answers another"),
    function("haslayer", "packet, layer", "Whether a packet has a layer; same as `layer in packet`"),
    function("rdpcap", "file", "The packets of a capture file"),
    function("wrpcap", "file, packets", "Write packets to a capture file"),
    function("hex", "number", "A number in hex digits, bytes too"),
    function("int", "value", "A plain number: unlike sequence numbers, sums do not wrap"),
    function("RandShort", "", "A random number from 1 to 65535"),
    function("RandInt", "", "A random number below 2^32"),
    function("vars", "", "The variables"),
    function("help", "of=None", "This list, or what one function does"),
    function("exit", "", "Leave the shell; also Ctrl-D"),
    function("quit", "", "Same as exit"),
];

/// The function of this name.
pub(crate) fn named(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

impl Function {
    /// Names of the parameters, and whether each is optional.
    pub fn parameters(&self) -> impl Iterator<Item = (&'static str, bool)> {
        self.parameters.split(", ").filter(|parameter| !matches!(*parameter, "" | "...")).map(|parameter| {
            match parameter.split_once('=') {
                Some((name, _)) => (name, true),
                None => (parameter, false),
            }
        })
    }

    /// Assigns arguments to parameters.
    pub fn bind(&'static self, call: Called) -> Result<Bound, Fault> {
        let parameters: Vec<(&'static str, bool)> = self.parameters().collect();
        let mut given: Vec<Option<Given>> = parameters.iter().map(|_| None).collect();
        for (position, argument) in call.arguments.into_iter().enumerate() {
            let place = match &argument.name {
                None => Some(position).filter(|position| *position < parameters.len()),
                Some(name) => parameters.iter().position(|(known, _)| known == name),
            };
            let Some(place) = place else {
                let names = parameters.iter().map(|(name, _)| *name);
                return Err(Fault::new(
                    argument.at,
                    match &argument.name {
                        Some(name) => format!("{}() has no argument '{name}'{}", self.name, nearest(name, names)),
                        None => format!("too many arguments: {}({})", self.name, self.parameters),
                    },
                ));
            };
            if given[place].is_some() {
                return Err(Fault::new(argument.at, format_args!("{} is given twice", parameters[place].0)));
            }
            given[place] = Some(argument);
        }
        for ((name, optional), given) in parameters.iter().zip(&given) {
            if !optional && given.is_none() {
                return Err(Fault::new(call.at, format_args!("{}({}) needs {name}", self.name, self.parameters)));
            }
        }
        Ok(Bound { at: call.at, function: self, names: parameters, given })
    }
}

/// A function with its arguments.
#[derive(Debug)]
pub(crate) struct Bound {
    pub at: usize,
    pub function: &'static Function,
    names: Vec<(&'static str, bool)>,
    given: Vec<Option<Given>>,
}

impl Bound {
    /// An argument and its byte offset, unless it was omitted or is `None`.
    pub fn get(&self, name: &str) -> Option<(usize, &Object)> {
        let place = self.names.iter().position(|(known, _)| *known == name)?;
        let given = self.given.get(place)?.as_ref()?;
        (given.value != Object::None).then_some((given.at, &given.value))
    }

    /// A mandatory argument and its byte offset.
    pub fn need(&self, name: &str) -> Result<(usize, &Object), Fault> {
        self.get(name)
            .ok_or_else(|| Fault::new(self.at, format_args!("{}() needs {name}, which is None", self.function.name)))
    }

    /// A number from `least` to `most`.
    pub fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, Fault> {
        let Some((at, value)) = self.get(name) else { return Ok(None) };
        let number = value.number().and_then(|number| u64::try_from(number).ok());
        let number = number.filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| Fault::new(at, format_args!("{name} must be a number from {least} to {most}")))
    }

    /// A boolean; `False` if omitted.
    pub fn flag(&self, name: &str) -> Result<bool, Fault> {
        Ok(self.number(name, 0, 1)?.is_some_and(|number| number == 1))
    }

    /// Seconds, more than 0 and at most 30 days.
    pub fn seconds(&self, name: &str) -> Result<Option<Duration>, Fault> {
        let Some((at, value)) = self.get(name) else { return Ok(None) };
        let seconds = value.decimal().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let seconds = seconds.filter(|time| !time.is_zero() && time.as_secs() <= 30 * 24 * 3600);
        seconds
            .map(Some)
            .ok_or_else(|| Fault::new(at, format_args!("{name} must be seconds, more than 0 and at most 2592000")))
    }

    /// The argument `rate` in packets per second, or `inter`, the seconds from one packet to the next.
    pub fn pace(&self) -> Result<Pace, Fault> {
        if let Some((at, value)) = self.get("inter") {
            if self.get("rate").is_some() {
                return Err(Fault::new(at, "rate and inter exclude each other: inter=0.1 is rate=10"));
            }
            let seconds = value.decimal().filter(|seconds| (0.0..=86_400.0).contains(seconds));
            let seconds = seconds.ok_or_else(|| Fault::new(at, "inter must be seconds from 0 to 86400"))?;
            return Ok(Pace { rate: (seconds > 0.0).then(|| 1.0 / seconds) });
        }
        let Some((at, value)) = self.get("rate") else { return Ok(Pace::default()) };
        let rate = value.decimal().filter(|rate| rate.is_finite() && *rate > 0.0);
        if rate.is_none() {
            return Err(Fault::new(at, "rate must be packets per second, more than 0"));
        }
        Ok(Pace { rate })
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, Fault> {
        let Some((at, value)) = self.get(name) else { return Ok(None) };
        value.text().map(Some).ok_or_else(|| Fault::new(at, format_args!("{name} must be a text, not {}", value.is())))
    }

    /// The packets of an argument: a packet, a set, or a list of them.
    pub fn packets(&self, name: &str) -> Result<Vec<Packet>, Fault> {
        Ok(self.received(name)?.into_iter().map(|received| received.packet).collect())
    }

    /// As [`packets`](Self::packets), with the times of those that have one.
    pub fn received(&self, name: &str) -> Result<Vec<Received>, Fault> {
        let (at, value) = self.need(name)?;
        let mut packets = Vec::new();
        collect(value, &mut packets).map_err(|reason| Fault::new(at, reason))?;
        Ok(packets)
    }

    /// The single packet of an argument.
    pub fn packet(&self, name: &str) -> Result<Packet, Fault> {
        let (at, value) = self.need(name)?;
        let packets = value.packets().filter(|_| !matches!(value, Object::Text(_) | Object::Report(_)));
        let packets = packets.ok_or_else(|| format!("{name} must be a packet, not {}", value.is()));
        packets.and_then(|packets| access::one(&packets)).map_err(|reason| Fault::new(at, reason))
    }
}

/// Collects all packets of a value.
fn collect(value: &Object, packets: &mut Vec<Received>) -> Result<(), String> {
    match value {
        Object::Packets(_) | Object::Layer(_) => {
            let set = value.packets().unwrap_or_default();
            let all = set.packets(crate::expr::LIMIT.saturating_sub(packets.len() as u128));
            let received = |packet| Received { packet, time: set.time() };
            packets.extend(all.map_err(|error| error.to_string())?.map(received));
        }
        Object::Pair(pair) => {
            let sent = pair.time.saturating_sub(pair.rtt);
            packets.extend([Received { packet: pair.request.clone(), time: Some(sent) }, pair.received()]);
        }
        Object::List(items) | Object::Tuple(items) => {
            items.items().iter().try_for_each(|item| collect(item, packets))?;
        }
        other => return Err(format!("packets are needed, not {}", other.is())),
    }
    Ok(())
}

/// `print(value, value)`: the values, separated by spaces; texts without quotes.
pub(super) fn print(call: Called) -> Result<Object, Fault> {
    let mut texts = Vec::with_capacity(call.arguments.len());
    for argument in call.arguments {
        if argument.name.is_some() {
            return Err(Fault::new(argument.at, "print() has no named arguments"));
        }
        texts.push(argument.value.text().map_or_else(|| argument.value.to_string(), str::to_owned));
    }
    Ok(Object::Report(texts.join(" ")))
}

/// Text of `help()`.
pub(super) fn help(of: Option<&str>) -> Result<String, String> {
    let line = |function: &Function| {
        let signature = format!("{}({})", function.name, function.parameters);
        format!("{signature:<46}  {}\n", function.doc)
    };
    if let Some(name) = of {
        let found = named(name).map(line);
        return found.ok_or_else(|| {
            format!("there is no function '{name}'{}", nearest(name, FUNCTIONS.iter().map(|function| function.name)))
        });
    }
    let functions: String = FUNCTIONS.iter().map(line).collect();
    Ok(format!("{BEGINNING}{functions}{END}"))
}

const BEGINNING: &str = "\
Packets are written as in Scapy, results are variables:
  synack = sr1(IP(dst=\"192.0.2.1\")/TCP(sport=5000, dport=80, flags=\"S\"))
  synack.ack + 1        a field of a reply; sequence numbers wrap at 2^32
  p[TCP].sport          a field of a layer           p[TCP]     the packet from a layer on
  p.ttl = 5             set a field                  del p.ttl  unset it: default or computed
  IP(dst=\"192.0.2.0/28\")/TCP(dport=[80,443])         a set of packets, its first one is [0]
Operators: + - * // % << >> & | ^ ~ == != < <= > >= in, and / between layers. _ is the last value.
Functions; value.function() is function(value):
";
const END: &str = "\
Ctrl-C ends what is running, Tab completes, `ls()` lists the layers, `ls(TCP)` fields of one.
";
