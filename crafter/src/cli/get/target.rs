//! URLs: which address to connect to, and what to request.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use crafter::{Error, Result};
use url::{Host, Url};

use super::super::{print, zone};

/// A URL that this command can fetch.
pub struct Target {
    /// The URL without the zone of its address.
    pub url: Url,
    /// The index of the interface that the zone of the address names; 0 without a zone.
    zone: u32,
}

impl Target {
    /// Reads a URL; `http://` is optional.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL that is malformed or not supported.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: String| Error::invalid("URL", reason);
        let rest = match scheme(text) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => {
                return Err(invalid(format!(
                    "cannot fetch '{text}': scheme '{scheme}' is not supported, only http without TLS; \
                     name an http:// URL, or use another program such as curl"
                )));
            }
            None => text,
        };
        // `Url` would take the first part of the path as the host.
        if rest.is_empty() || rest.starts_with(['/', '\\', '?', '#']) {
            return Err(invalid(format!("'{text}' names no host; write HOST, HOST:PORT or HOST/PATH")));
        }
        let (scoped, path) = rest.split_at(rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len()));
        let (host, zone) = without_zone(scoped)?;
        let rest = &format!("{host}{path}");
        let url = match host.parse::<Ipv6Addr>() {
            Ok(address) => Url::parse(&format!("http://[{address}]{path}")),
            Err(_) => Url::parse(&format!("http://{rest}")),
        };
        let url = url.map_err(|error| invalid(format!("'{text}': {error}; write http://HOST[:PORT]/PATH")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("a user name and password are not supported; remove them from the URL".to_owned()));
        }
        if url.port() == Some(0) {
            return Err(invalid("port 0 is not a valid destination; use 1 to 65535".to_owned()));
        }
        Ok(Self { url, zone })
    }

    /// The target of a redirect: a URL, or a reference relative to this URL (RFC 9110, section 10.2.2).
    ///
    /// # Errors
    /// As [`Target::parse`].
    pub fn join(&self, location: &str) -> Result<Self> {
        let url = self.url.join(location).map_err(|error| Error::invalid("URL", format!("{location:?}: {error}")))?;
        let mut target = Self::parse(url.as_str())?;
        if self.url.host() == target.url.host() {
            target.zone = self.zone;
        }
        Ok(target)
    }

    /// Whether the other target has the same host and port.
    pub fn is_same_host(&self, other: &Self) -> bool {
        self.url.host() == other.url.host() && self.url.port() == other.url.port()
    }

    /// The addresses of the server, the preferred one first.
    ///
    /// # Errors
    /// [`Error::UnknownHost`] if the name is not found.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>> {
        let port = self.url.port_or_known_default().unwrap_or(80);
        match self.url.host() {
            Some(Host::Ipv4(address)) => Ok(vec![(address, port).into()]),
            Some(Host::Ipv6(address)) => Ok(vec![SocketAddrV6::new(address, port, 0, self.zone).into()]),
            Some(Host::Domain(name)) => match tokio::net::lookup_host((name, port)).await {
                Ok(addresses) => Ok(addresses.collect()),
                Err(error) => Err(Error::UnknownHost { name: name.to_owned(), reason: print::resolver(&error) }),
            },
            None => Err(Error::invalid("URL", "no host in it; write HOST, HOST:PORT or HOST/PATH")),
        }
    }

    /// The error for a host without an address; `how` says which addresses are missing.
    pub fn not_found(&self, how: &str) -> Error {
        let name = self.url.host_str().unwrap_or_default().to_owned();
        Error::UnknownHost { name, reason: format!("no address found {how}") }
    }

    /// The Host header field (RFC 9112, section 3.2).
    pub fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// Path and query (RFC 9112, section 3.2.1).
    pub fn path(&self) -> &str {
        &self.url[url::Position::BeforePath..url::Position::AfterQuery]
    }
}

/// Takes the zone out of `fe80::1%eth0`, `[fe80::1%eth0]:80` and `[fe80::1%25eth0]` (RFC 6874); returns the index of its
/// interface, 0 without a zone.
fn without_zone(host: &str) -> Result<(String, u32)> {
    let (inner, port) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')).unwrap_or((host, ""));
    let decoded = match inner.split_once("%25") {
        Some((address, zone)) if !zone.is_empty() => format!("{address}%{zone}"),
        _ => inner.to_owned(),
    };
    Ok(match zone::parse(&decoded)? {
        Some(address) => (format!("[{}]{port}", address.ip()), address.scope_id()),
        None => (host.to_owned(), 0),
    })
}

/// The scheme (RFC 3986, section 3.1) and what follows `://`. Without `//`, the text is a host and a port.
fn scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_scheme.then_some((scheme, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn urls_are_split_into_host_path_and_address() {
        for (text, host, path, address) in [
            ("http://192.0.2.1", "192.0.2.1", "/", "192.0.2.1:80"),
            ("http://192.0.2.1:80/a?b=c#d", "192.0.2.1", "/a?b=c", "192.0.2.1:80"),
            ("http://[2001:db8::1]:8080/a b", "[2001:db8::1]:8080", "/a%20b", "[2001:db8::1]:8080"),
            ("192.0.2.1/bytes/1M", "192.0.2.1", "/bytes/1M", "192.0.2.1:80"),
            ("[2001:db8::1]:8080/x", "[2001:db8::1]:8080", "/x", "[2001:db8::1]:8080"),
            ("2001:db8::1/x", "[2001:db8::1]", "/x", "[2001:db8::1]:80"),
            ("192.0.2.1:8080?u=http://b/", "192.0.2.1:8080", "/?u=http://b/", "192.0.2.1:8080"),
            ("HTTP://192.0.2.1", "192.0.2.1", "/", "192.0.2.1:80"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.host().as_str(), target.path()), (host, path));
            assert_eq!(target.addresses().await.unwrap(), [address.parse().unwrap()]);
        }
    }

    #[test]
    fn scheme_is_optional() {
        for (text, host, path) in [
            ("web.lab.test", "web.lab.test", "/"),
            ("host:8080/path", "host:8080", "/path"),
            ("localhost:80/", "localhost", "/"),
            ("x", "x", "/"),
            ("x#top", "x", "/"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.host().as_str(), target.path()), (host, path), "{text}");
        }
    }

    #[test]
    fn unsupported_urls_are_rejected() {
        for text in [
            "",
            "/",
            "//a/",
            "?a",
            "http://",
            "http:///a",
            "https://a/",
            "ftp://a/",
            "http://a:0/",
            "a:0",
            "a:b",
            "a b",
            "mailto:a@b",
            "a:99999",
            "[2001:db8::1",
            "2001:db8::x",
            "://a",
            "\\a",
        ] {
            assert!(matches!(Target::parse(text), Err(Error::Invalid { what, .. }) if what == "URL"), "{text}");
        }
        for text in ["http://user:secret@a/", "user@a"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
        let error = Target::parse("https://a/").err().unwrap();
        let expected = "URL: cannot fetch 'https://a/': scheme 'https' is not supported, only http without TLS; \
                    name an http:// URL, or use another program such as curl";
        assert_eq!(error.to_string(), expected);
    }
}
