//! Builds layers to bytes: headers first to last, then lengths and checksums last to first.

use smallvec::SmallVec;

use super::{
    AnyLayer, Dns, Ip, Ipv6, Packet, described::Family, dns, icmp_extension, ip, ipv6, table::FieldError, udp,
};
use crate::{
    error::Result,
    view::{
        checksum::{fold, sum},
        field,
    },
};

/// Offset of each layer in a built packet, in bytes.
pub(crate) type Offsets = SmallVec<[usize; 16]>;

/// A packet that is being built, from the perspective of one layer.
pub(crate) struct Building<'a> {
    bytes: &'a mut [u8],
    layers: &'a [AnyLayer],
    places: &'a [usize],
    at: usize,
    end: usize,
}

impl Building<'_> {
    /// The layer's bytes up to the end of its payload, padding excluded.
    #[inline(always)]
    pub fn bytes(&mut self) -> &mut [u8] {
        let start = self.places[self.at];
        &mut self.bytes[start..self.end.max(start)]
    }

    /// Length of the layer's own header, in bytes.
    #[inline(always)]
    pub fn header(&self) -> usize {
        let next = self.places.get(self.at + 1).copied().unwrap_or(self.bytes.len());
        // The padding of a quote is not part of a header.
        next.min(self.end).saturating_sub(self.places[self.at])
    }

    /// Length of header and payload, in bytes.
    #[inline(always)]
    pub fn length(&self) -> usize {
        self.end.saturating_sub(self.places[self.at])
    }

    /// Length of the quote in this ICMP error, in bytes, if extensions follow it.
    pub fn quote(&self) -> Option<usize> {
        let extension = (self.at + 1..self.layers.len()).find(|at| {
            matches!(self.layers[*at], AnyLayer::IcmpExtensionHeader(_))
                && icmp_extension::extended(&self.layers[..*at]) == Some(self.at)
        })?;
        Some(self.places[extension] - self.places[self.at + 1])
    }

    /// Whether the layer follows directly after TCP.
    pub fn is_behind_tcp(&self) -> bool {
        is_behind_tcp(self.layers, self.at)
    }

    /// The next layer.
    #[inline(always)]
    pub fn next(&self) -> Option<&AnyLayer> {
        self.layers.get(self.at + 1)
    }

    /// Writes a big-endian 16-bit number at a byte offset in this layer.
    #[inline(always)]
    pub fn put16(&mut self, at: usize, value: u16) {
        if let Some(field) = self.bytes().get_mut(at..at + 2) {
            field.copy_from_slice(&value.to_be_bytes());
        }
    }

    /// The Internet checksum over header and payload, and the pseudo-header of the IP layer below if `protocol` is
    /// given; `None` without an IP layer below. The checksum field must be 0.
    #[inline(always)]
    pub fn checksum(&mut self, protocol: Option<u8>) -> Option<u16> {
        let length = self.length();
        let pseudo = match protocol {
            Some(protocol) => self.addresses()? + u64::from(protocol) + length as u64,
            None => 0,
        };
        Some(!fold(pseudo + sum(self.bytes())))
    }

    /// The sum of the addresses of the IP layer below; IPv6 extension headers may be in between.
    #[inline(always)]
    fn addresses(&self) -> Option<u64> {
        let (mut last_hop, mut home) = (None, None);
        for below in (0..self.at).rev() {
            let header = &self.bytes[self.places[below]..];
            match &self.layers[below] {
                AnyLayer::Ip(ip) => {
                    let both = header.get(field::ipv4::ADDRESSES)?;
                    // RFC 791, section 3.1: with a source route, its last address is the final destination.
                    return Some(match ip.options.as_ref().and_then(|options| ip::last_hop(options)) {
                        Some(last) => sum(&both[..4]) + sum(&last.octets()),
                        None => sum(both),
                    });
                }
                AnyLayer::Ipv6(_) => {
                    let both = header.get(field::ipv6::ADDRESSES)?;
                    // RFC 8200, section 8.1: the final destination, taken from a routing header if there is one; RFC
                    // 6275, section 11.3.1: the home address instead of the source.
                    return Some(
                        home.unwrap_or_else(|| sum(&both[..16])) + last_hop.unwrap_or_else(|| sum(&both[16..])),
                    );
                }
                AnyLayer::Ipv6Routing(routing) => {
                    last_hop = last_hop.or(routing.final_destination().map(|address| sum(&address.octets())));
                }
                AnyLayer::Ipv6Destination(options) => {
                    home = home.or(options.home_address().map(|address| sum(&address.octets())));
                }
                AnyLayer::Described(routing) if routing.family() == Family::SegmentRouting => {
                    last_hop = last_hop.or(routing.final_destination().map(|address| sum(&address.octets())));
                }
                AnyLayer::Ipv6HopByHop(_) | AnyLayer::Ipv6Fragment(_) => {}
                _ => return None,
            }
        }
        None
    }
}

impl Packet {
    /// Builds the packet to bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) with the field whose value or computed length exceeds its width.
    pub fn build(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.build_into(&mut out)?;
        Ok(out)
    }

    /// Builds into a buffer and replaces its content. Allocates only if the buffer is too small or the packet has more
    /// than 16 layers.
    ///
    /// # Errors
    /// Those of [`build`](Self::build); the buffer's content is then unspecified.
    #[inline]
    pub fn build_into(&self, out: &mut Vec<u8>) -> Result<()> {
        let mut places = Offsets::new();
        Ok(build(self.layers(), out, &mut places)?)
    }
}

#[inline]
pub(crate) fn build(layers: &[AnyLayer], out: &mut Vec<u8>, places: &mut Offsets) -> Result<(), FieldError> {
    out.clear();
    let mut quotes = Quotes::new();
    for (at, layer) in layers.iter().enumerate() {
        if matches!(layer, AnyLayer::IcmpExtensionHeader(_)) {
            quotes.extend(Quote::fill(layers, at, out, places));
        }
        places.push(out.len());
        if matches!(layer, AnyLayer::Dns(Dns { length: None, .. })) && is_behind_tcp(layers, at) {
            out.extend_from_slice(&[0; dns::PREFIX]);
        }
        layer.write(out)?;
        if let AnyLayer::Ipv6(Ipv6 { dst: None, .. }) = layer
            && let Some(group) = ipv6::group(layers.get(at + 1))
        {
            let end = out.len();
            out[end - 16..].copy_from_slice(&group.octets());
        }
        if let AnyLayer::Ip(Ip { dst: None, .. }) = layer
            && let Some(group) = udp::group(layers.get(at + 1))
        {
            let at = places[at] + Ip::AT.dst;
            out[at..at + 4].copy_from_slice(&group.octets());
        }
    }
    let has_quotes = !quotes.is_empty();
    let mut end = out.len();
    // Padding belongs to the innermost frame; outer frames and packets count it as payload.
    let mut behind_padding = None;
    for (at, layer) in layers.iter().enumerate().rev() {
        match layer {
            AnyLayer::Padding(_) => {
                behind_padding.get_or_insert(end);
                end = places[at];
                continue;
            }
            AnyLayer::IcmpExtensionHeader(_) => {
                layer.finish(&mut Building { bytes: out, layers, places, at, end })?;
                if let Some(quote) = quotes.iter_mut().find(|quote| quote.extension == at) {
                    // The quoted packet ends before its padding, the error after its extensions.
                    (quote.around, quote.behind_padding) = (end, behind_padding.take());
                    end = quote.end;
                }
                continue;
            }
            AnyLayer::Ether(_) => {
                if let Some(all) = behind_padding.take() {
                    layer.finish(&mut Building { bytes: out, layers, places, at, end })?;
                    end = all;
                    continue;
                }
            }
            AnyLayer::Raw(_) => continue,
            _ if has_quotes => {
                if let Some(quote) = quotes.iter().find(|quote| quote.error == at) {
                    (end, behind_padding) = (quote.around, quote.behind_padding);
                }
            }
            _ => {}
        }
        layer.finish(&mut Building { bytes: out, layers, places, at, end })?;
    }
    Ok(())
}

fn is_behind_tcp(layers: &[AnyLayer], at: usize) -> bool {
    matches!(at.checked_sub(1).map(|below| &layers[below]), Some(AnyLayer::Tcp(_)))
}

/// A quoted packet that is followed by ICMP extensions.
struct Quote {
    /// Indices of the layers: the error, and its extensions.
    error: usize,
    extension: usize,
    /// End of the quoted packet, in bytes.
    end: usize,
    /// End of the error, and of the padding after it, once known.
    around: usize,
    behind_padding: Option<usize>,
}

type Quotes = SmallVec<[Quote; 1]>;

impl Quote {
    /// Pads the quote before the extensions at `extension` to its required length (RFC 4884, section 4).
    #[cold]
    fn fill(layers: &[AnyLayer], extension: usize, out: &mut Vec<u8>, places: &Offsets) -> Option<Self> {
        let error = icmp_extension::extended(&layers[..extension])?;
        let end = out.len();
        let start = places.get(error + 1).copied().unwrap_or(end);
        if let Some(length) = icmp_extension::padded(&layers[error], end - start) {
            out.resize(start + length, 0);
        }
        Some(Self { error, extension, end, around: 0, behind_padding: None })
    }
}
