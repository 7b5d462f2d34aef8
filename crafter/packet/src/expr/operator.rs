//! Operators.

use std::{cmp::Ordering, sync::Arc};

use super::{
    PacketSet,
    object::{Items, MAX_LENGTH, Object},
};
use crate::layer::Layer as _;

/// A binary operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `/`
    Stack,
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `//`
    Divide,
    /// `%`
    Remainder,
    /// `<<`
    Left,
    /// `>>`
    Right,
    /// `&`
    And,
    /// `|`
    Or,
    /// `^`
    Xor,
    /// `==`
    Equal,
    /// `!=`
    Unequal,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
    /// `in`
    In,
}

/// A unary operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// `+`
    Plus,
    /// `-`
    Minus,
    /// `~`
    Invert,
}

use Operator as Op;

impl Operator {
    /// Precedence, as in Python; a higher number binds tighter.
    pub fn strength(self) -> u8 {
        match self {
            Op::Stack | Op::Multiply | Op::Divide | Op::Remainder => 6,
            Op::Add | Op::Subtract => 5,
            Op::Left | Op::Right => 4,
            Op::And => 3,
            Op::Xor => 2,
            Op::Or => 1,
            Op::Equal | Op::Unequal | Op::Less | Op::AtMost | Op::More | Op::AtLeast | Op::In => 0,
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Op::Stack => "/",
            Op::Add => "+",
            Op::Subtract => "-",
            Op::Multiply => "*",
            Op::Divide => "//",
            Op::Remainder => "%",
            Op::Left => "<<",
            Op::Right => ">>",
            Op::And => "&",
            Op::Or => "|",
            Op::Xor => "^",
            Op::Equal => "==",
            Op::Unequal => "!=",
            Op::Less => "<",
            Op::AtMost => "<=",
            Op::More => ">",
            Op::AtLeast => ">=",
            Op::In => "in",
        }
    }

    /// Applies the operator to two values.
    ///
    /// # Errors
    /// An error message, if the operator is undefined for them.
    pub fn apply(self, left: &Object, right: &Object) -> Result<Object, String> {
        let mismatch = || {
            let advice = match (self, left, right) {
                (Op::Divide, Object::Packets(_), Object::Packets(_)) => "; one '/' separates layers",
                _ => "",
            };
            Err(format!("'{}' is not defined for {} and {}{advice}", self.sign(), left.is(), right.is()))
        };
        match self {
            Op::Stack => stack(left, right),
            Op::Equal => Ok(Object::Bool(equal(left, right))),
            Op::Unequal => Ok(Object::Bool(!equal(left, right))),
            Op::Less | Op::AtMost | Op::More | Op::AtLeast => {
                let Some(order) = order(left, right) else { return mismatch() };
                Ok(Object::Bool(match self {
                    Op::Less => order.is_lt(),
                    Op::AtMost => order.is_le(),
                    Op::More => order.is_gt(),
                    _ => order.is_ge(),
                }))
            }
            Op::In => contains(right, left).map_or_else(mismatch, |found| Ok(Object::Bool(found))),
            _ => match (left.number(), right.number()) {
                (Some(a), Some(b)) => {
                    let is_sequence = matches!(left, Object::Sequence(_)) || matches!(right, Object::Sequence(_));
                    match self {
                        Op::Add if is_sequence => Ok(Object::Sequence(a.wrapping_add(b) as u32)),
                        Op::Subtract if is_sequence => Ok(Object::Sequence(a.wrapping_sub(b) as u32)),
                        _ => self.calculate(a, b).map(Object::Number),
                    }
                }
                _ => match (self, left, right) {
                    (Op::Multiply, sequence, Object::Number(times))
                    | (Op::Multiply, Object::Number(times), sequence)
                        if is_sequence(sequence) =>
                    {
                        repeated(sequence, *times)
                    }
                    (Op::Add, Object::Bytes(a), Object::Bytes(b)) => joined(a, b).map(Object::Bytes),
                    (Op::Add, Object::List(a), Object::List(b)) => {
                        Items::new(joined(a.items(), b.items())?).map(Object::List)
                    }
                    (Op::Add, Object::Tuple(a), Object::Tuple(b)) => {
                        Items::new(joined(a.items(), b.items())?).map(Object::Tuple)
                    }
                    (Op::Add, Object::Text(a) | Object::Report(a), Object::Text(b) | Object::Report(b)) => {
                        joined(a.as_bytes(), b.as_bytes())?;
                        Ok(Object::Text(format!("{a}{b}")))
                    }
                    _ => match (self, left.decimal(), right.decimal()) {
                        (Op::Add, Some(a), Some(b)) => Ok(Object::Decimal(a + b)),
                        (Op::Subtract, Some(a), Some(b)) => Ok(Object::Decimal(a - b)),
                        (Op::Multiply, Some(a), Some(b)) => Ok(Object::Decimal(a * b)),
                        _ => mismatch(),
                    },
                },
            },
        }
    }

    fn calculate(self, a: i128, b: i128) -> Result<i128, String> {
        if matches!(self, Op::Divide | Op::Remainder) && b == 0 {
            return Err("division by 0".to_owned());
        }
        let places = || u32::try_from(b).ok().filter(|places| *places < 128).ok_or("a shift by 0 to 127 is needed");
        let result = match self {
            Op::Add => a.checked_add(b),
            Op::Subtract => a.checked_sub(b),
            Op::Multiply => a.checked_mul(b),
            // Rounds down; the remainder has the sign of the divisor, as in Python.
            Op::Divide => a.checked_div_euclid(b).and_then(|quotient| match b < 0 && a.rem_euclid(b) != 0 {
                true => quotient.checked_sub(1),
                false => Some(quotient),
            }),
            Op::Remainder => a.checked_rem_euclid(b).map(|rest| if b < 0 && rest != 0 { rest + b } else { rest }),
            Op::Left => {
                let places = places()?;
                let moved = a.checked_shl(places).filter(|moved| moved >> places == a);
                moved.filter(|moved| (*moved < 0) == (a < 0))
            }
            Op::Right => Some(a >> places()?),
            Op::And => Some(a & b),
            Op::Or => Some(a | b),
            Op::Xor => Some(a ^ b),
            _ => None,
        };
        result.ok_or_else(|| "the result is too large".to_owned())
    }
}

impl Sign {
    /// Applies the operator to a value.
    ///
    /// # Errors
    /// An error message, if the operator is undefined for it.
    pub fn apply(self, value: &Object) -> Result<Object, String> {
        match (self, value, value.number()) {
            (Self::Minus, Object::Sequence(number), _) => Ok(Object::Sequence(number.wrapping_neg())),
            (Self::Plus, _, Some(_)) | (Self::Plus, Object::Decimal(_), _) => Ok(value.clone()),
            (Self::Minus, Object::Decimal(number), _) => Ok(Object::Decimal(-number)),
            (Self::Minus, _, Some(number)) => {
                number.checked_neg().map(Object::Number).ok_or_else(|| "the result is too large".to_owned())
            }
            (Self::Invert, _, Some(number)) => Ok(Object::Number(!number)),
            _ => Err(format!("a sign has no meaning before {}", value.is())),
        }
    }
}

fn joined<T: Clone>(a: &[T], b: &[T]) -> Result<Vec<T>, String> {
    if a.len() + b.len() > MAX_LENGTH {
        return Err(format!("the result is longer than {MAX_LENGTH}"));
    }
    Ok([a, b].concat())
}

fn stack(left: &Object, right: &Object) -> Result<Object, String> {
    let is_number = |object: &Object| object.decimal().is_some();
    if is_number(left) && is_number(right) {
        return Err("'/' stacks layers; '//' divides numbers".to_owned());
    }
    let packets = |object: &Object| {
        let wanted = "a layer, a packet, a text or bytes";
        object.packets().ok_or_else(|| format!("'/' stacks layers: expected {wanted}, got {}", object.is()))
    };
    let (left, right) = (packets(left)?, packets(right)?);
    let mut set: PacketSet = Arc::unwrap_or_clone(left);
    set.stack(&right)?;
    Ok(Object::Packets(set.into()))
}

fn equal(left: &Object, right: &Object) -> bool {
    match (left.number(), right.number()) {
        (Some(a), Some(b)) => return a == b,
        // Flags compare as a number and as a string.
        _ if left.text().is_some() && left.text() == right.text() => return true,
        _ => {}
    }
    match (left.decimal(), right.decimal()) {
        (Some(a), Some(b)) => a == b,
        _ => left == right,
    }
}

fn order(left: &Object, right: &Object) -> Option<Ordering> {
    match (left, right) {
        (Object::Text(a), Object::Text(b)) => Some(a.cmp(b)),
        (Object::Bytes(a), Object::Bytes(b)) => Some(a.cmp(b)),
        _ => match (left.number(), right.number()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => left.decimal()?.partial_cmp(&right.decimal()?),
        },
    }
}

fn is_sequence(object: &Object) -> bool {
    matches!(object, Object::Text(_) | Object::Report(_) | Object::Bytes(_) | Object::List(_) | Object::Tuple(_))
}

/// A text, bytes, a list or a tuple several times; none if the number is negative, as in Python.
fn repeated(sequence: &Object, times: i128) -> Result<Object, String> {
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    let fits = |length: usize| match length.checked_mul(times) {
        Some(..=MAX_LENGTH) => Ok(times),
        _ => Err(format!("it would be longer than {MAX_LENGTH}")),
    };
    let all = |items: &Items, times| std::iter::repeat_n(items.items(), times).flatten().cloned().collect();
    Ok(match sequence {
        Object::Text(text) | Object::Report(text) => Object::Text(text.repeat(fits(text.len())?)),
        Object::Bytes(bytes) => Object::Bytes(bytes.repeat(fits(bytes.len())?)),
        Object::List(items) => Object::List(Items::new(all(items, fits(items.items().len())?))?),
        Object::Tuple(items) => Object::Tuple(Items::new(all(items, fits(items.items().len())?))?),
        other => other.clone(),
    })
}

fn contains(whole: &Object, part: &Object) -> Option<bool> {
    match (whole, part) {
        (Object::Packets(packets), Object::Layer(kind)) => {
            Some(packets.template().layers().iter().any(|layer| layer.kind() == *kind))
        }
        (Object::Packets(packets), Object::Text(name)) => {
            Some(packets.template().layers().iter().any(|layer| layer.info().name == name))
        }
        (Object::List(items) | Object::Tuple(items), _) => Some(items.items().iter().any(|item| equal(item, part))),
        (Object::Bytes(whole), Object::Bytes(part)) => {
            Some(part.is_empty() || whole.windows(part.len()).any(|window| window == part))
        }
        _ => Some(whole.text()?.contains(part.text()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_rounds_like_python() {
        for (a, b, quotient, rest) in [(7, 2, 3, 1), (-7, 2, -4, 1), (7, -2, -4, -1), (-7, -2, 3, -1), (6, -2, -3, 0)] {
            assert_eq!(Op::Divide.calculate(a, b), Ok(quotient), "{a} // {b}");
            assert_eq!(Op::Remainder.calculate(a, b), Ok(rest), "{a} % {b}");
        }
        assert!(Op::Divide.calculate(1, 0).is_err());
        assert!(Op::Divide.calculate(i128::MIN, -1).is_err());
        assert!(Op::Left.calculate(1, 127).is_err() && Op::Left.calculate(1, 126).is_ok());
        assert!(Op::Left.calculate(1, 128).is_err() && Op::Right.calculate(1, -1).is_err());
    }

    #[test]
    fn sequence_numbers_wrap() {
        let last = Object::Sequence(u32::MAX);
        assert_eq!(Op::Add.apply(&last, &Object::Number(1)), Ok(Object::Sequence(0)));
        assert_eq!(Op::Subtract.apply(&Object::Sequence(3), &last), Ok(Object::Sequence(4)));
        assert_eq!(Op::Multiply.apply(&last, &Object::Number(2)), Ok(Object::Number(8_589_934_590)));
        assert_eq!(Op::Add.apply(&Object::Number(0xffff_ffff), &Object::Number(1)), Ok(Object::Number(1 << 32)));
    }
}
