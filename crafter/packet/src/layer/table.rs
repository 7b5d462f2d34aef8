//! The macro that defines a layer from a table of its fields: struct, builder methods, access by name, and the encoding
//! of the fixed part.

use crate::error::Error;

use super::value::{FieldInfo, nearest};

/// Description of a layer.
#[derive(Debug)]
pub struct LayerInfo {
    /// The name in Scapy.
    pub name: &'static str,
    /// The standard that defines it.
    pub source: &'static str,
    /// A short description.
    pub doc: &'static str,
    /// The fields in wire order.
    pub fields: &'static [FieldInfo],
}

impl LayerInfo {
    /// Finds a field by name; returns its index too.
    pub fn field(&self, name: &str) -> Option<(usize, &'static FieldInfo)> {
        let all = || self.fields.iter().enumerate();
        // Scapy writes some flags in upper case.
        all()
            .find(|(_, field)| field.name == name)
            .or_else(|| all().find(|(_, field)| field.name.eq_ignore_ascii_case(name)))
    }

    /// The error message for an unknown field.
    pub(crate) fn unknown(&self, field: &str) -> String {
        format!("{} has no field '{field}'{}", self.name, nearest(field, self.fields.iter().map(|field| field.name)))
    }
}

/// A value or computed length exceeds the width of its field.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FieldError {
    pub layer: &'static str,
    pub field: &'static str,
    pub bits: usize,
}

impl From<FieldError> for Error {
    #[cold]
    fn from(error: FieldError) -> Self {
        let FieldError { layer, field, bits } = error;
        let (layer, field) = (layer, field.strip_prefix("r#").unwrap_or(field));
        Self::invalid(format!("{layer}.{field}"), format_args!("the value does not fit {bits} bits"))
    }
}

/// A value of fixed width in a header, in network byte order. With constant arguments it compiles to a load or store.
pub(crate) trait BitField: Sized {
    /// Writes the value at `offset` bits; `false` if it exceeds `bits`.
    fn put(self, header: &mut [u8], offset: usize, bits: usize) -> bool;
    /// Reads the value at `offset` bits.
    fn get(header: &[u8], offset: usize, bits: usize) -> Self;
}

#[inline(always)]
pub(crate) fn put_bits(value: u64, header: &mut [u8], offset: usize, bits: usize) -> bool {
    if bits < 64 && value >> bits != 0 {
        return false;
    }
    let (first, last) = (offset / 8, (offset + bits - 1) / 8);
    if offset.is_multiple_of(8) && bits.is_multiple_of(8) {
        header[first..last + 1].copy_from_slice(&value.to_be_bytes()[8 - bits / 8..]);
        return true;
    }
    let mut rest = u128::from(value) << (7 - (offset + bits - 1) % 8);
    for at in (first..=last).rev() {
        header[at] |= rest as u8;
        rest >>= 8;
    }
    true
}

/// Reads `bits` bits at bit `offset` of a header as a number, the most significant bit first.
#[inline(always)]
pub fn get_bits(header: &[u8], offset: usize, bits: usize) -> u64 {
    let (first, last) = (offset / 8, (offset + bits - 1) / 8);
    let mut all = 0_u128;
    for byte in &header[first..=last] {
        all = all << 8 | u128::from(*byte);
    }
    let all = (all >> (7 - (offset + bits - 1) % 8)) as u64;
    if bits < 64 { all & ((1 << bits) - 1) } else { all }
}

macro_rules! bit_field {
    ($($type:ty),*) => {$(
        impl BitField for $type {
            #[inline(always)]
            fn put(self, header: &mut [u8], offset: usize, bits: usize) -> bool {
                put_bits(u64::from(self), header, offset, bits)
            }

            #[inline(always)]
            fn get(header: &[u8], offset: usize, bits: usize) -> Self {
                get_bits(header, offset, bits) as $type
            }
        }
    )*};
}

bit_field!(u8, u16, u32, u64);

impl<const N: usize> BitField for [u8; N] {
    #[inline(always)]
    fn put(self, header: &mut [u8], offset: usize, _: usize) -> bool {
        header[offset / 8..offset / 8 + N].copy_from_slice(&self);
        true
    }

    #[inline(always)]
    fn get(header: &[u8], offset: usize, _: usize) -> Self {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&header[offset / 8..offset / 8 + N]);
        bytes
    }
}

macro_rules! bit_field_address {
    ($($type:ty),*) => {$(
        impl BitField for $type {
            #[inline(always)]
            fn put(self, header: &mut [u8], offset: usize, bits: usize) -> bool {
                self.octets().put(header, offset, bits)
            }

            #[inline(always)]
            fn get(header: &[u8], offset: usize, bits: usize) -> Self {
                <Self as From<_>>::from(<[u8; size_of::<$type>()] as BitField>::get(header, offset, bits))
            }
        }
    )*};
}

bit_field_address!(std::net::Ipv4Addr, std::net::Ipv6Addr);

/// Offset in bits of the field at `index`.
pub(crate) const fn offset(widths: &[usize], index: usize) -> usize {
    let (mut sum, mut i) = (0, 0);
    while i < index {
        sum += widths[i];
        i += 1;
    }
    sum
}

/// A field's name without the `r#` of raw identifiers.
pub(crate) const fn plain(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// Defines a layer: `field: type, bits, default;`, where the default is `computed` or a value in parentheses,
/// optionally followed by names of values. Fields of variable length follow after `tail`.
macro_rules! layer {
    (
        $(#[doc = $doc:literal])*
        pub struct $layer:ident: $name:literal, $source:literal {
            $( $(#[doc = $fdoc:literal])* $field:ident: $type:ty, $bits:literal, $default:tt $(, $names:expr)?; )*
        }
        tail { $( $(#[doc = $tdoc:literal])* $tail:ident: $ttype:ty; )* }
    ) => {
        $(#[doc = $doc])*
        ///
        /// A field that is `None` gets its default or is computed; a field that is set is written as it is.
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        pub struct $layer {
            $( $(#[doc = $fdoc])* pub $field: Option<$type>, )*
            $( $(#[doc = $tdoc])* pub $tail: Option<$ttype>, )*
        }

        #[allow(dead_code)]
        impl $layer {
            /// Default values; `None` for computed fields.
            pub(crate) const DEFAULTS: Self = Self {
                $( $field: $crate::layer::table::layer!(@default $default), )*
                $( $tail: None, )*
            };

            /// Length of the fixed part, in bytes.
            pub const FIXED: usize = (0 $( + $bits )*) / 8;

            /// A layer without set fields.
            pub fn new() -> Self {
                Self::default()
            }

            $( $(#[doc = $fdoc])*
            #[must_use]
            pub fn $field(mut self, value: impl $crate::layer::value::IntoField<$type>) -> Self {
                self.$field = Some(value.into_field());
                self
            } )*

            $( $(#[doc = $tdoc])*
            #[must_use]
            pub fn $tail(mut self, value: impl $crate::layer::value::IntoField<$ttype>) -> Self {
                self.$tail = Some(value.into_field());
                self
            } )*
        }

        const _: () = {
            #[allow(unused_imports)]
            use $crate::layer::{
                table::{LayerInfo, FieldError, BitField, offset, plain},
                value::{FieldInfo, FieldValue, Value},
            };

            #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
            #[derive(Clone, Copy)]
            enum Index { $( $field, )* $( $tail, )* }

            #[allow(dead_code)]
            const WIDTHS: &[usize] = &[$( $bits ),*];

            /// Byte offsets of the fields of the fixed part.
            #[allow(dead_code)]
            pub struct Offsets { $( pub $field: usize, )* }

            #[allow(dead_code)]
            impl $layer {
                /// Offset of the byte in which each field of the fixed part begins.
                pub(crate) const AT: Offsets =
                    Offsets { $( $field: offset(WIDTHS, Index::$field as usize) / 8, )* };
            }

            static INFO: LayerInfo = LayerInfo {
                name: $name,
                source: $source,
                doc: concat!($($doc),*),
                fields: &[
                    $( FieldInfo {
                        name: plain(stringify!($field)),
                        kind: <$type as FieldValue>::KIND,
                        bits: $bits,
                        offset: Some(offset(WIDTHS, Index::$field as usize)),
                        default: $crate::layer::table::layer!(@value $type, $default),
                        names: $crate::layer::table::layer!(@names $($names)?),
                        doc: concat!($($fdoc),*),
                        form: $crate::layer::described::Form::Typed,
                    }, )*
                    $( FieldInfo {
                        name: plain(stringify!($tail)),
                        kind: <$ttype as FieldValue>::KIND,
                        bits: 0,
                        offset: None,
                        default: Some(|| <$ttype as FieldValue>::KIND.empty()),
                        names: &[],
                        doc: concat!($($tdoc),*),
                        form: $crate::layer::described::Form::Typed,
                    }, )*
                ],
            };

            #[allow(unused_variables, unused_mut)]
            impl $crate::layer::Layer for $layer {
                fn info(&self) -> &'static LayerInfo {
                    &INFO
                }

                fn value(&self, index: usize) -> Option<Value> {
                    match index {
                        $( i if i == Index::$field as usize => self.$field.as_ref().map(FieldValue::to_value), )*
                        $( i if i == Index::$tail as usize => self.$tail.as_ref().map(FieldValue::to_value), )*
                        _ => None,
                    }
                }

                fn set_value(&mut self, index: usize, value: &Value) -> Result<(), String> {
                    let unset = *value == Value::None;
                    match index {
                        $( i if i == Index::$field as usize => {
                            self.$field = if unset { None } else { Some(FieldValue::from_value(value, &INFO.fields[i])?) };
                        } )*
                        $( i if i == Index::$tail as usize => {
                            self.$tail = if unset { None } else { Some(FieldValue::from_value(value, &INFO.fields[i])?) };
                        } )*
                        _ => {}
                    }
                    Ok(())
                }
            }

            #[allow(unused_variables, unused_mut)]
            impl $crate::layer::protocol::Fixed for $layer {
                const INFO: &'static LayerInfo = &INFO;

                #[inline(always)]
                fn put_fixed(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
                    let mut header = [0_u8; $layer::FIXED];
                    $( if let Some(value) = self.$field.or($layer::DEFAULTS.$field)
                        && !value.put(&mut header, const { offset(WIDTHS, Index::$field as usize) }, $bits)
                    {
                        return Err(FieldError { layer: $name, field: stringify!($field), bits: $bits });
                    } )*
                    out.extend_from_slice(&header);
                    Ok(())
                }

                #[inline(always)]
                fn get_fixed(bytes: &[u8]) -> Option<Self> {
                    let header = bytes.first_chunk::<{ $layer::FIXED }>()?;
                    Some(Self {
                        $( $field: Some(BitField::get(header, const { offset(WIDTHS, Index::$field as usize) }, $bits)), )*
                        $( $tail: None, )*
                    })
                }
            }

            impl std::ops::Div<$layer> for &str {
                type Output = $crate::layer::Packet;

                fn div(self, above: $layer) -> Self::Output {
                    $crate::layer::Packet::from(self) / above
                }
            }

            impl<T: Into<$crate::layer::Packet>> std::ops::Div<T> for $layer {
                type Output = $crate::layer::Packet;

                fn div(self, above: T) -> Self::Output {
                    $crate::layer::Packet::from(self) / above
                }
            }
        };
    };
    (@default computed) => { None };
    (@default ($($value:tt)*)) => { Some($($value)*) };
    (@value $type:ty, computed) => { None };
    (@value $type:ty, ($($value:tt)*)) => { Some(|| <$type as FieldValue>::to_value(&($($value)*))) };
    (@names) => { &[] };
    (@names $names:expr) => { $names };
}

pub(crate) use layer;
