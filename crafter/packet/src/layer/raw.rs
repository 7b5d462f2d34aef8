//! Bytes without a protocol: payload, and padding after the end of a packet.

use std::fmt;

use super::{
    AnyLayer, Kind,
    protocol::{Parsed, Protocol},
    table::{FieldError, layer},
};

layer! {
    /// Bytes without further structure
    pub struct Raw: "Raw", "-" {}
    tail {
        /// The bytes
        load: Vec<u8>;
    }
}

layer! {
    /// Bytes after the end of a packet: the lengths and checksums of layers below exclude them, up to the enclosing
    /// frame
    pub struct Padding: "Padding", "-" {}
    tail {
        /// The bytes
        load: Vec<u8>;
    }
}

impl Raw {
    /// A layer of these bytes.
    pub fn of(load: impl Into<Vec<u8>>) -> Self {
        Self { load: Some(load.into()) }
    }
}

macro_rules! bytes {
    ($($layer:ident),*) => {$(
        impl Protocol for $layer {
            fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
                let layer = Self { load: Some(bytes.to_vec()) };
                Some(Parsed { layer, header: bytes.len(), end: bytes.len(), next: Kind::Raw })
            }

            #[inline(always)]
            fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
                if let Some(load) = &self.load {
                    out.extend_from_slice(load);
                }
                Ok(())
            }

            fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
                write!(f, "{}({})", stringify!($layer), self.load.as_ref().map_or(0, Vec::len))
            }
        }
    )*};
}

bytes!(Raw, Padding);

#[cfg(test)]
mod tests {
    use crate::layer::{Ether, Ip, Packet, Padding, Udp};

    #[test]
    fn padding_is_excluded_from_lengths() {
        let packet = Ether::new() / Ip::to("192.0.2.1") / Udp::to(7) / "abc" / Padding::of([0; 15]);
        let bytes = packet.build().unwrap();
        assert_eq!(bytes.len(), 60);
        assert_eq!((bytes[17], bytes[39]), (31, 11), "lengths of IP and UDP");
        let read = Packet::from_ethernet(&bytes);
        assert_eq!(read.get::<Padding>().unwrap().load.as_deref(), Some(&[0; 15][..]));
        assert_eq!(read.build().unwrap(), bytes);
    }

    #[test]
    fn padding_of_inner_frame_is_payload_of_outer() {
        let inner = Ether::new() / Ip::to("192.0.2.1") / Udp::to(7) / Padding::of([0; 18]);
        let packet = Ip::to("192.0.2.9") / Udp::new() / crate::layer::Vxlan::new() / inner;
        let bytes = packet.build().unwrap();
        assert_eq!(usize::from(bytes[3]), bytes.len());
        assert_eq!(bytes[20 + 8 + 8 + 14 + 3], 28);
    }
}
