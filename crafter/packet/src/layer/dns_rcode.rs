//! Names of DNS response codes.

use super::Dns;

impl Dns {
    /// Mnemonic of a response code (RFC 6895, section 2.3), `RCODE` and the number without one.
    pub fn rcode_name(code: u16) -> String {
        let name = match code {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            6 => "YXDOMAIN",
            7 => "YXRRSET",
            8 => "NXRRSET",
            9 => "NOTAUTH",
            10 => "NOTZONE",
            16 => "BADVERS",
            23 => "BADCOOKIE",
            other => return format!("RCODE{other}"),
        };
        name.to_owned()
    }
}
