//! The functions.

use std::{fmt::Write as _, path::Path};

use super::{
    list,
    signature::{self, Bound, Fault},
    state::Shell,
    world::{SniffOptions, World},
};
use crate::{
    capture::{Capture, Captured, Entry, Format, Writer},
    error::Error,
    expr::{
        access,
        object::{Items, Object, Received},
    },
    layer::{Kind, Packet},
    session::SrOptions,
};

/// Largest `count` of `send()`.
const MAX_COUNT: u64 = 1_000_000_000;
/// How often `send(loop=1)` sends: years at any rate.
const FOREVER: u64 = 1 << 48;
/// Largest `count` of `sniff()`.
const MAX_SNIFFED: u64 = 1_000_000;
/// Packets that one call prints.
const MAX_SHOWN: usize = 10_000;

impl<W: World> Shell<W> {
    /// Calls a function.
    pub(super) async fn function(&mut self, bound: Bound) -> Result<Object, Fault> {
        let at = bound.at;
        Ok(match bound.function.name {
            "send" | "sendp" => self.send(&bound).await?,
            "sr" | "srp" => {
                self.check_interface(&bound)?;
                let options = exchange(&bound)?;
                let exchange = self.world.sr(sent(&bound, "packets")?, &options).await.map_err(failed(at))?;
                self.notices.extend(exchange.note);
                let answered = exchange.answered.into_iter().map(|pair| Object::Pair(pair.into())).collect();
                let unanswered = exchange.unanswered.into_iter().map(Object::from).collect();
                let parts = [("answered", answered), ("unanswered", unanswered)];
                let parts = parts.map(|(title, items)| Object::List(Items::titled(title, items)));
                Object::Tuple(Items::new(parts.into()).map_err(|reason| Fault::new(at, reason))?)
            }
            "sr1" | "srp1" => {
                self.check_interface(&bound)?;
                let packet = bound.packet("packet")?;
                let options = exchange(&bound)?;
                self.world.sr1(packet, &options).await.map_err(failed(at))?.map_or(Object::None, Object::from)
            }
            "sniff" => {
                let options = SniffOptions {
                    filter: bound.text("filter")?.map(str::to_owned),
                    count: bound.number("count", 0, MAX_SNIFFED)?.filter(|count| *count > 0),
                    timeout: bound.seconds("timeout")?,
                    interface: bound.text("iface")?.map(str::to_owned),
                };
                if options.count.is_none() && options.timeout.is_none() {
                    return Err(Fault::new(at, "sniff() has no end: set count or timeout"));
                }
                let packets = self.world.sniff(&options).await.map_err(failed(at))?;
                Object::List(Items::titled("packets", packets.into_iter().map(Object::from).collect()))
            }
            "show" => Object::Report(each(&bound, "value", "", Packet::show)?),
            "summary" => Object::Report(summary(&bound)?),
            "hexdump" => Object::Report(hexdump(&bound)?),
            "ls" => Object::Report(ls(&bound)?),
            "len" => len(&bound)?,
            "raw" | "bytes" => match bound.need("packet")?.1 {
                Object::Bytes(bytes) => Object::Bytes(bytes.clone()),
                Object::Text(text) => Object::Bytes(text.clone().into_bytes()),
                _ => Object::Bytes(bound.packet("packet")?.build().map_err(failed(at))?),
            },
            "recompute" => {
                let mut packet = bound.packet("packet")?;
                packet.recompute();
                packet.into()
            }
            "fuzz" => {
                let mut packet = bound.packet("packet")?;
                let seed = match bound.number("seed", 0, u64::MAX)? {
                    Some(seed) => seed,
                    None => self.world.random().map_err(failed(at))?,
                };
                packet.fuzz(seed, bound.flag("all")?);
                packet.into()
            }
            "answers" => {
                let (answer, request) = (bound.packet("answer")?, bound.packet("request")?);
                Object::Bool(answer.answers(&request.resolved().map_err(failed(at))?))
            }
            "haslayer" => {
                let (packet, (at, layer)) = (bound.packet("packet")?, bound.need("layer")?);
                Object::Bool(match layer {
                    Object::Layer(kind) => packet.layers().iter().any(|layer| layer.kind() == *kind),
                    Object::Text(name) => {
                        let kind = Kind::named(name).map_err(|reason| Fault::new(at, reason))?;
                        packet.layers().iter().any(|layer| layer.kind() == kind)
                    }
                    other => return Err(Fault::new(at, format_args!("expected a layer, got {}", other.is()))),
                })
            }
            "rdpcap" => self.read_capture(&bound)?,
            "wrpcap" => self.write_capture(&bound)?,
            "hex" => match bound.need("number")? {
                (_, Object::Bytes(bytes)) => Object::Text(crate::layer::value::hex(bytes)),
                (at, value) => match value.number() {
                    Some(number @ ..0) => Object::Text(format!("-{:#x}", number.unsigned_abs())),
                    Some(number) => Object::Text(format!("{number:#x}")),
                    None => return Err(Fault::new(at, format_args!("a number is needed, not {}", value.is()))),
                },
            },
            "int" => int(&bound)?,
            "RandShort" => Object::Number(i128::from(self.world.random().map_err(failed(at))? % 0xffff + 1)),
            "RandInt" => Object::Number(i128::from(self.world.random().map_err(failed(at))? as u32)),
            "vars" => Object::Report(self.variables_text()),
            "help" => {
                let of = match bound.get("of") {
                    Some((_, Object::Function(name))) => Some(*name),
                    _ => bound.text("of")?,
                };
                let text = signature::help(of);
                Object::Report(text.map_err(|reason| Fault::new(bound.get("of").map_or(at, |(at, _)| at), reason))?)
            }
            "exit" | "quit" => {
                self.leaving = true;
                Object::None
            }
            other => return Err(Fault::new(at, format_args!("{other}() cannot be called"))),
        })
    }

    /// Rejects another interface than that of the shell, through which its packets go.
    fn check_interface(&self, bound: &Bound) -> Result<(), Fault> {
        let Some(wanted) = bound.text("iface")? else { return Ok(()) };
        let reason = match self.world.interface() {
            Some(interface) if interface == wanted => return Ok(()),
            Some(interface) => format!("this shell sends through {interface}"),
            None => "this shell sends through the interface of the route".to_owned(),
        };
        let at = bound.get("iface").map_or(bound.at, |(at, _)| at);
        Err(Fault::new(at, format_args!("{reason}; `crafter shell --interface {wanted}` starts one for {wanted}")))
    }

    async fn send(&mut self, bound: &Bound) -> Result<Object, Fault> {
        let packets = sent(bound, "packets")?;
        self.check_interface(bound)?;
        // Until Ctrl-C.
        let count = if bound.flag("loop")? { FOREVER } else { bound.number("count", 1, MAX_COUNT)?.unwrap_or(1) };
        let sent = self.world.send(packets, count, bound.pace()?).await.map_err(failed(bound.at))?;
        Ok(Object::Number(sent.into()))
    }

    fn read_capture(&mut self, bound: &Bound) -> Result<Object, Fault> {
        let path = bound.text("file")?.unwrap_or_default();
        let capture = Capture::read(&self.world.read(path).map_err(failed(bound.at))?).map_err(failed(bound.at))?;
        self.notices.extend(capture.broken.map(|reason| format!("{path}: {reason}")));
        let received = |captured: &Captured| Received { packet: captured.packet(), time: captured.time };
        let packets = capture.packets.iter().map(|captured| received(captured).into()).collect();
        Ok(Object::List(Items::titled("packets", packets)))
    }

    fn write_capture(&mut self, bound: &Bound) -> Result<Object, Fault> {
        let path = bound.text("file")?.unwrap_or_default();
        // An empty list is probably a mistake.
        sent(bound, "packets")?;
        let packets = bound.received("packets")?;
        let write = |now| {
            let mut writer = Writer::new(Vec::new(), Format::of(Path::new(path)))?;
            for Received { packet, time } in &packets {
                let first = packet.layers().first().map_or(Kind::Raw, |layer| layer.kind());
                writer.write(&Entry::new(time.unwrap_or(now), first, &packet.build()?))?;
            }
            writer.finish()
        };
        let bytes = write(self.world.now()).map_err(failed(bound.at))?;
        self.world.write(path, &bytes).map_err(failed(bound.at))?;
        Ok(Object::None)
    }

    fn variables_text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.variables {
            let line: String = value.to_string().lines().next().unwrap_or_default().chars().take(100).collect();
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name} = {line}");
        }
        text
    }
}

/// The packets of an argument; none at all is an error.
fn sent(bound: &Bound, name: &str) -> Result<Vec<Packet>, Fault> {
    let packets = bound.packets(name)?;
    match packets.is_empty() {
        true => Err(Fault::new(bound.need(name)?.0, format_args!("{name} contains no packet"))),
        false => Ok(packets),
    }
}

fn exchange(bound: &Bound) -> Result<SrOptions, Fault> {
    let default = SrOptions::default();
    Ok(SrOptions {
        timeout: bound.seconds("timeout")?.unwrap_or(default.timeout),
        retry: bound.number("retry", 0, 1000)?.map_or(default.retry, |retry| retry as u32),
        pace: bound.pace()?,
        multi: bound.flag("multi")?,
        fragment: default.fragment,
        discard_replies: false,
    })
}

/// Turns an error of a call at this byte offset into a fault.
fn failed<E: Into<Error>>(at: usize) -> impl Fn(E) -> Fault {
    move |error| Fault::failed(at, error)
}

/// Texts of all packets of an argument.
fn each(
    bound: &Bound,
    name: &str,
    between: &str,
    text: impl Fn(&Packet) -> crafter_packet::Result<String>,
) -> Result<String, Fault> {
    let packets = bound.packets(name)?;
    if packets.len() > MAX_SHOWN {
        let reason = format_args!(
            "{} packets are more than the {MAX_SHOWN} that can be printed: select some, as in [0:100]",
            packets.len()
        );
        return Err(Fault::new(bound.need(name)?.0, reason));
    }
    let texts: crafter_packet::Result<Vec<String>> = packets.iter().map(text).collect();
    Ok(texts.map_err(failed(bound.at))?.join(between))
}

fn summary(bound: &Bound) -> Result<String, Fault> {
    match bound.need("value")?.1 {
        // One line per pair.
        Object::List(items) if items.items().iter().all(|item| matches!(item, Object::Pair(_))) => {
            Ok(items.items().iter().take(MAX_SHOWN).map(|pair| format!("{pair}\n")).collect())
        }
        pair @ Object::Pair(_) => Ok(pair.to_string()),
        _ => each(bound, "value", "\n", |packet| Ok(packet.summary())),
    }
}

fn hexdump(bound: &Bound) -> Result<String, Fault> {
    match bound.need("value")?.1 {
        bytes @ (Object::Bytes(_) | Object::Text(_)) => {
            let packet = bytes.packets().and_then(|packets| packets.single().ok()).unwrap_or_default();
            packet.hexdump().map_err(failed(bound.at))
        }
        _ => each(bound, "value", "\n", Packet::hexdump),
    }
}

fn ls(bound: &Bound) -> Result<String, Fault> {
    let Some((at, of)) = bound.get("of") else { return Ok(list::layers()) };
    let named = |name: &str| Kind::named(name).map_err(|reason| Fault::new(at, reason));
    match of {
        Object::Layer(kind) => Ok(list::fields(&kind.layer(), false)),
        Object::Text(name) => Ok(list::fields(&named(name)?.layer(), false)),
        _ => {
            let packet = bound.packet("of")?;
            Ok(packet.layers().iter().map(|layer| list::fields(layer, true)).collect::<Vec<_>>().join("\n"))
        }
    }
}

fn len(bound: &Bound) -> Result<Object, Fault> {
    let (at, value) = bound.need("value")?;
    let length = match value {
        Object::List(items) | Object::Tuple(items) => items.items().len() as u128,
        Object::Bytes(bytes) => bytes.len() as u128,
        Object::Packets(packets) if packets.len() != 1 => packets.len(),
        Object::Packets(packets) => {
            let packet = access::one(packets).map_err(|reason| Fault::new(at, reason))?;
            packet.build().map_err(failed(at))?.len() as u128
        }
        other => match other.text() {
            Some(text) => text.chars().count() as u128,
            None => return Err(Fault::new(at, format_args!("{} has no length", other.is()))),
        },
    };
    Ok(Object::Number(i128::try_from(length).unwrap_or(i128::MAX)))
}

fn int(bound: &Bound) -> Result<Object, Fault> {
    let (at, value) = bound.need("value")?;
    let number = match value {
        Object::Flags(bits, _) => Some((*bits).into()),
        Object::Decimal(number) if number.is_finite() => Some(number.trunc() as i128),
        other => other.number().or_else(|| other.text()?.trim().parse().ok()),
    };
    number.map(Object::Number).ok_or_else(|| Fault::new(at, format_args!("{} is not a number", value.is())))
}
