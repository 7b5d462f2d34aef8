//! Which service a command uses: the options `--direct` and `--socket`.

use std::path::{Path, PathBuf};

use crafter::{
    Error, Result,
    protocol::control::{Control, SOCKET, SOCKET_VARIABLE},
};

/// For commands that use the service where there is one, and do without it otherwise.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Service")]
#[group(skip)]
pub struct Args {
    /// Do it in this process, which takes privileges, even where the service runs
    #[arg(long, conflicts_with = "socket")]
    pub direct: bool,
    #[command(flatten)]
    pub socket: Socket,
}

/// Where the service listens; alone for commands that only the service can answer.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Service")]
pub struct Socket {
    /// The service's socket [env: CRAFTER_SOCKET] [default: /run/crafter/crafter.sock]
    // Not clap's `env`: it takes an empty variable for an error, and --direct wins over the variable.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl Args {
    /// Whether the service was asked for.
    pub fn is_asked(&self) -> bool {
        !self.direct && self.socket.asked().is_some()
    }

    /// A connection to the service; `None`: this process shall do it, because of `--direct` or because no service is
    /// there.
    ///
    /// # Errors
    /// [`Error::NoService`] if it was asked for, by `--socket` or by the environment, and does not answer.
    pub async fn open(&self) -> Result<Option<Control>> {
        if self.direct {
            return Ok(None);
        }
        let asked = self.socket.asked();
        match Control::connect(asked.as_deref().unwrap_or(Path::new(SOCKET))).await {
            Ok(control) => Ok(Some(control)),
            Err(error @ Error::NoService { .. }) if asked.is_none() => {
                // One that is there, but not for this user or not running, is worth a word.
                let level = if Path::new(SOCKET).exists() { log::Level::Warn } else { log::Level::Debug };
                log::log!(level, "{error}; doing without");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Socket {
    /// A connection to the service.
    ///
    /// # Errors
    /// [`Error::NoService`] if it does not answer.
    pub async fn open(&self) -> Result<Control> {
        Control::connect(self.asked().as_deref().unwrap_or(Path::new(SOCKET))).await
    }

    /// Where the service listens, or is to listen.
    pub fn path(&self) -> PathBuf {
        self.asked().unwrap_or_else(|| PathBuf::from(SOCKET))
    }

    /// The socket that was asked for, by option or by environment.
    fn asked(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        self.socket.clone().or_else(variable)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        service: Args,
    }

    #[test]
    fn one_way_only() {
        assert!(Line::try_parse_from(["crafter", "--direct", "--socket", "/nowhere"]).is_err());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_asked_for_must_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("crafter.sock");
        let line = Line::parse_from(["crafter", "--socket", path.to_str().unwrap()]);
        for attempt in ["nothing is there", "nobody listens"] {
            let said = line.service.open().await.unwrap_err();
            assert!(
                matches!(&said, Error::NoService { path: at, .. } if *at == path.display().to_string()),
                "{attempt}"
            );
            drop(std::os::unix::net::UnixListener::bind(&path));
        }
        let _listener = {
            std::fs::remove_file(&path).unwrap();
            std::os::unix::net::UnixListener::bind(&path).unwrap()
        };
        assert!(line.service.open().await.unwrap().is_some());
        assert!(Args { direct: true, socket: Socket::default() }.open().await.unwrap().is_none());
    }
}
