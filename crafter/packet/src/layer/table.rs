//! What a layer's fields are, said once in a table; structs, builder methods, access by name and
//! the fixed part on the wire come from it.

use crate::error::Error;

use super::value::{FieldInfo, nearest};

/// What is known of a layer.
#[derive(Debug)]
pub struct LayerInfo {
    /// Its name, that of Scapy.
    pub name: &'static str,
    /// What defines it.
    pub source: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// Its fields in the order of the wire.
    pub fields: &'static [FieldInfo],
}

impl LayerInfo {
    /// A field by name.
    pub fn field(&self, name: &str) -> Option<(usize, &'static FieldInfo)> {
        self.fields.iter().enumerate().find(|(_, field)| field.name == name)
    }

    /// The error for a field that this layer does not have.
    pub(crate) fn unknown(&self, field: &str) -> String {
        format!("{} has no field '{field}'{}", self.name, nearest(field, self.fields.iter().map(|field| field.name)))
    }
}

/// A value or computed length that its field is too narrow for.
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

/// A value of fixed width in a header. With constant arguments it compiles to a plain load or store.
pub(crate) trait BitField: Sized {
    /// Puts the value at `offset` bits; false if it is too large for `bits`.
    fn put(self, header: &mut [u8], offset: usize, bits: usize) -> bool;
    /// The value at `offset` bits.
    fn get(header: &[u8], offset: usize, bits: usize) -> Self;
}

#[inline(always)]
fn put_bits(value: u64, header: &mut [u8], offset: usize, bits: usize) -> bool {
    if bits < 64 && value >> bits != 0 {
        return false;
    }
    let (first, last) = (offset / 8, (offset + bits - 1) / 8);
    if offset.is_multiple_of(8) && bits.is_multiple_of(8) {
        header[first..=last].copy_from_slice(&value.to_be_bytes()[8 - bits / 8..]);
        return true;
    }
    let mut rest = u128::from(value) << (7 - (offset + bits - 1) % 8);
    for at in (first..=last).rev() {
        header[at] |= rest as u8;
        rest >>= 8;
    }
    true
}

/// The bits of a header from `offset` on, as a number; both counted in bits, most significant first.
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

/// Bits before the field at `index`.
pub(crate) const fn offset(widths: &[usize], index: usize) -> usize {
    let (mut sum, mut i) = (0, 0);
    while i < index {
        sum += widths[i];
        i += 1;
    }
    sum
}

/// A field's name without the `r#` that makes a keyword an identifier.
pub(crate) const fn plain(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// Defines a layer: `field: type, bits, default;`, the default being `computed` or a value of the
/// type in parentheses, then optionally names of values. What varies in length follows behind `tail`.
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
        /// A field that is `None` gets its default or is computed; what is set is kept, wrong or not.
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        pub struct $layer {
            $( $(#[doc = $fdoc])* pub $field: Option<$type>, )*
            $( $(#[doc = $tdoc])* pub $tail: Option<$ttype>, )*
        }

        #[allow(dead_code)]
        impl $layer {
            /// The defaults of the fields that are not computed.
            pub(crate) const DEFAULTS: Self = Self {
                $( $field: $crate::layer::table::layer!(@default $default), )*
                $( $tail: None, )*
            };

            /// Length of the fixed part, in bytes.
            pub const FIXED: usize = (0 $( + $bits )*) / 8;

            /// A layer of which nothing is set.
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

            /// Where each field of the fixed part begins, in bytes.
            #[allow(dead_code)]
            pub struct Offsets { $( pub $field: usize, )* }

            #[allow(dead_code)]
            impl $layer {
                /// Where each field of the fixed part begins, in bytes; one of less than a byte is within that byte.
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
                    }, )*
                    $( FieldInfo {
                        name: plain(stringify!($tail)),
                        kind: <$ttype as FieldValue>::KIND,
                        bits: 0,
                        offset: None,
                        default: Some(|| <$ttype as FieldValue>::KIND.empty()),
                        names: &[],
                        doc: concat!($($tdoc),*),
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
