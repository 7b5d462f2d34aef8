//! What a URL says: whom to connect to, and what to ask for.

use std::{io, net::SocketAddr};

use crafter::{Error, Result};
use url::{Host, Url};

/// A URL that can be fetched.
pub struct Target {
    pub url: Url,
}

impl Target {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no URL, or one that is not fetched here.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: String| Error::invalid("URL", reason);
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(url::ParseError::RelativeUrlWithoutBase) => {
                return Err(invalid(format!("'{text}' does not start with http://")));
            }
            Err(error) => return Err(invalid(format!("'{text}': {error}"))),
        };
        if url.scheme() != "http" {
            return Err(invalid(format!("scheme '{}' is not supported, only http", url.scheme())));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("a user name and password in it are not supported".to_owned()));
        }
        if url.port() == Some(0) {
            return Err(invalid("port 0 cannot be connected to".to_owned()));
        }
        Ok(Self { url })
    }

    /// The server's addresses, in the order of preference.
    ///
    /// # Errors
    /// [`Error::Io`] if the name is not found.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>> {
        let port = self.url.port_or_known_default().unwrap_or(80);
        match self.url.host() {
            Some(Host::Ipv4(address)) => Ok(vec![(address, port).into()]),
            Some(Host::Ipv6(address)) => Ok(vec![(address, port).into()]),
            Some(Host::Domain(name)) => match tokio::net::lookup_host((name, port)).await {
                Ok(addresses) => Ok(addresses.collect()),
                Err(source) => Err(Error::Io { action: format!("look up {name}"), source }),
            },
            None => Err(Error::invalid("URL", "it names no host")),
        }
    }

    /// That there is no address.
    pub fn not_found(&self, how: &str) -> Error {
        let name = self.url.host_str().unwrap_or_default();
        let source = io::Error::new(io::ErrorKind::NotFound, format!("no address found {how}"));
        Error::Io { action: format!("look up {name}"), source }
    }

    /// The Host field (RFC 9112 section 3.2).
    pub fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// Path and query (RFC 9112 section 3.2.1).
    pub fn path(&self) -> &str {
        &self.url[url::Position::BeforePath..url::Position::AfterQuery]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn parts() {
        for (text, host, path, address) in [
            ("http://192.0.2.1", "192.0.2.1", "/", "192.0.2.1:80"),
            ("http://192.0.2.1:80/a?b=c#d", "192.0.2.1", "/a?b=c", "192.0.2.1:80"),
            ("http://[2001:db8::1]:8080/a b", "[2001:db8::1]:8080", "/a%20b", "[2001:db8::1]:8080"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.host().as_str(), target.path()), (host, path));
            assert_eq!(target.addresses().await.unwrap(), [address.parse().unwrap()]);
        }
    }

    #[test]
    fn what_is_not_fetched() {
        for text in ["", "x", "192.0.2.1/", "localhost:80/", "https://a/", "ftp://a/", "http://", "http://a:0/"] {
            assert!(matches!(Target::parse(text), Err(Error::Invalid { what, .. }) if what == "URL"), "{text}");
        }
        assert!(Target::parse("http://user:secret@a/").is_err());
        let error = Target::parse("https://a/").err().unwrap();
        assert_eq!(error.to_string(), "URL: scheme 'https' is not supported, only http");
    }
}
