//! Which service a command uses: the options `--direct` and `--socket`.

use std::path::{Path, PathBuf};

use crafter::{
    Error, Result,
    protocol::control::{Control, SOCKET, SOCKET_VARIABLE},
};

/// Options of commands that use the service if it runs, and else work by themselves.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Service")]
#[group(skip)]
pub struct Args {
    /// Work in this process, which needs privileges, even if the service runs
    #[arg(long, conflicts_with = "socket")]
    pub direct: bool,
    #[command(flatten)]
    pub socket: Socket,
}

/// Option of commands that need the service.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Service")]
pub struct Socket {
    /// The service's socket [env: CRAFTER_SOCKET] [default: /run/crafter/crafter.sock]
    // Not clap's `env`: an empty variable would be an error, and --direct would conflict with the variable.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl Args {
    /// Whether the user has requested the service, by option or environment.
    pub fn is_requested(&self) -> bool {
        !self.direct && self.socket.requested().is_some()
    }

    /// A connection to the service; `None` if this process is to work by itself: with `--direct`, or if no service
    /// answers.
    ///
    /// # Errors
    /// [`Error::NoService`] if the user has requested the service and it does not answer.
    pub async fn open(&self) -> Result<Option<Control>> {
        if self.direct {
            return Ok(None);
        }
        let requested = self.socket.requested();
        match Control::connect(requested.as_deref().unwrap_or(Path::new(SOCKET))).await {
            Ok(control) => Ok(Some(control)),
            Err(error @ Error::NoService { .. }) if requested.is_none() => {
                // A socket that exists but cannot be used is unexpected; no socket is normal.
                let level = if Path::new(SOCKET).exists() { log::Level::Warn } else { log::Level::Debug };
                log::log!(level, "{error}; continuing without the service");
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
        Control::connect(self.requested().as_deref().unwrap_or(Path::new(SOCKET))).await
    }

    /// The path of the socket.
    pub fn path(&self) -> PathBuf {
        self.requested().unwrap_or_else(|| PathBuf::from(SOCKET))
    }

    /// The socket that the user has requested, by option or environment.
    fn requested(&self) -> Option<PathBuf> {
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
    fn direct_conflicts_with_socket() {
        assert!(Line::try_parse_from(["crafter", "--direct", "--socket", "/nowhere"]).is_err());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn requested_socket_must_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("crafter.sock");
        let line = Line::parse_from(["crafter", "--socket", path.to_str().unwrap()]);
        for attempt in ["no file", "no listener"] {
            let error = line.service.open().await.unwrap_err();
            assert!(
                matches!(&error, Error::NoService { path: at, .. } if *at == path.display().to_string()),
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
