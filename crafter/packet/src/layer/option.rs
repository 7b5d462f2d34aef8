//! Lists of options as IPv4 and TCP have them: a kind, a length that counts both, data (RFC 791, 3.1; RFC 9293, 3.1).

/// An option of such a list.
pub(crate) trait ListOption: Sized {
    /// End of the list (kind 0).
    const END: Self;
    /// Filler (kind 1).
    const FILLER: Self;
    /// So many are usual, hence allocated at once.
    const USUAL: usize;

    /// The option of a kind with its data.
    fn read(kind: u8, data: &[u8]) -> Self;
    /// Bytes that are no options.
    fn rest(bytes: &[u8]) -> Self;
}

/// Reads option bytes to their end; nothing is lost.
#[inline]
pub(crate) fn parse<T: ListOption>(mut bytes: &[u8]) -> Vec<T> {
    let mut options = Vec::with_capacity(T::USUAL);
    loop {
        match bytes {
            [] => return options,
            [0, rest @ ..] => {
                options.push(T::END);
                if !rest.is_empty() {
                    options.push(T::rest(rest));
                }
                return options;
            }
            [1, rest @ ..] => {
                options.push(T::FILLER);
                bytes = rest;
            }
            [kind, length, ..] if *length >= 2 && usize::from(*length) <= bytes.len() => {
                let (option, rest) = bytes.split_at(usize::from(*length));
                options.push(T::read(*kind, &option[2..]));
                bytes = rest;
            }
            rest => {
                options.push(T::rest(rest));
                return options;
            }
        }
    }
}
