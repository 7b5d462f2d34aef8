//! What the service says of itself and of this user; any local user that may connect can ask for it.

use std::{os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use crafter::{
    Error, Result,
    protocol::wire::{ABI, Allowance, Info, InfoCall, PolicyCall, Rule},
};
use nix::unistd::{Gid, Group, Uid};
use serde::Serialize;

use super::super::{
    service::Socket,
    who::{Users, printable},
};

/// How long the service may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Whether this user can work through the service, and why not.
#[derive(Debug, Serialize)]
pub struct Served {
    pub works: bool,
    pub finding: String,
    socket: String,
    version: Option<String>,
    abi: Option<u32>,
    /// Who this process is to the service.
    user: Option<u32>,
    /// The number of the rule of its policy that decides.
    rule: Option<u32>,
}

impl Served {
    /// Asks the service.
    pub async fn ask(socket: &Socket) -> Self {
        let path = socket.path();
        let said = tokio::time::timeout(TIMEOUT, look(socket)).await;
        let (works, finding, info, allowance) = match said {
            Ok(Ok((info, allowance))) => {
                let (works, finding) = judge(&info, &allowance, &path);
                (works, finding, Some(info), Some(allowance))
            }
            Ok(Err(error)) => (false, why_not(&error, &path), None, None),
            Err(_) => {
                let finding = format!(
                    "the service at {} does not answer within {TIMEOUT:?} (look at `systemctl status crafter`)",
                    path.display()
                );
                (false, finding, None, None)
            }
        };
        Self {
            works,
            finding,
            socket: path.display().to_string(),
            version: info.as_ref().map(|info| printable(&info.version)),
            abi: info.as_ref().map(|info| info.abi),
            user: allowance.as_ref().map(|allowance| allowance.user),
            rule: allowance.and_then(|allowance| allowance.rule).map(|rule| rule.number),
        }
    }
}

async fn look(socket: &Socket) -> Result<(Info, Allowance)> {
    let control = socket.open().await?;
    Ok((control.call(&InfoCall {}).await?, control.call(&PolicyCall {}).await?))
}

/// Whether the user may do anything, and by what.
fn judge(info: &Info, allowance: &Allowance, path: &Path) -> (bool, String) {
    let user = Users::default().label(allowance.user);
    let at = format!("crafter {} at {}", printable(&info.version), path.display());
    if info.abi != ABI {
        let finding = format!("{at} speaks abi {}, this program {ABI}; install the same version of both", info.abi);
        return (false, finding);
    }
    let policy = match info.policy.as_str() {
        "shipped" => "its policy, the shipped one; write another to /etc/crafter/crafter.toml".to_owned(),
        path => format!("its policy; ask the administrator of {} to change it", printable(path)),
    };
    match &allowance.rule {
        None => (false, format!("{at} allows {user} nothing: no rule names this user or a group of it in {policy}")),
        Some(rule) if rule.refuse => {
            (false, format!("{at} allows {user} nothing: rule {} refuses everything in {policy}", rule.number))
        }
        Some(rule) => match grants(rule).as_str() {
            "" => (false, format!("{at} allows {user} nothing: rule {} gives no protocol in {policy}", rule.number)),
            grants => (true, format!("{at} allows {user} {grants} (rule {})", rule.number)),
        },
    }
}

fn grants(rule: &Rule) -> String {
    let mut grants = rule.protocols.clone();
    if rule.observe {
        grants.push("observing".to_owned());
    }
    grants.join(", ")
}

/// Why nobody answers, with what this user can do about it.
fn why_not(error: &Error, path: &Path) -> String {
    match error {
        Error::NoService { reason, .. } if !path.exists() => {
            format!(
                "no service listens at {} ({reason}); start it with `sudo systemctl enable --now crafter.socket` or \
                 `sudo crafter serve`",
                path.display()
            )
        }
        // By its mode; the group of the socket decides who may connect.
        Error::NoService { .. } if !may_connect(path) => {
            let group = std::fs::metadata(path).ok().map(|socket| Gid::from_raw(socket.gid()));
            let group =
                group.and_then(|group| Group::from_gid(group).ok().flatten()).map(|group| printable(&group.name));
            let user = Users::default().label(Uid::effective().as_raw());
            let group = group.unwrap_or_else(|| "crafter".to_owned());
            format!(
                "{user} may not connect to the service at {}; join its group and log in again: \
                 sudo usermod -aG {group} {user}",
                path.display()
            )
        }
        other => other.to_string(),
    }
}

fn may_connect(path: &Path) -> bool {
    nix::unistd::eaccess(path, nix::unistd::AccessFlags::W_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_service_allows() {
        let info = Info { version: "0.1.0".into(), abi: ABI, policy: "shipped".into(), ..Info::default() };
        let rule = Rule { number: 2, protocols: vec!["tcp".into()], observe: true, ..Rule::default() };
        let judged = |info: &Info, rule: Option<Rule>| {
            judge(info, &Allowance { user: 4_000_000_000, rule, ..Allowance::default() }, Path::new("/run/s"))
        };
        let (works, finding) = judged(&info, Some(rule.clone()));
        assert_eq!(
            (works, finding.as_str()),
            (true, "crafter 0.1.0 at /run/s allows 4000000000 tcp, observing (rule 2)")
        );
        for (rule, why) in [
            (None, "no rule names this user"),
            (Some(Rule { refuse: true, ..rule.clone() }), "rule 2 refuses everything in its policy, the shipped one"),
            (Some(Rule { protocols: vec![], observe: false, ..rule.clone() }), "rule 2 gives no protocol"),
        ] {
            let (works, finding) = judged(&info, rule);
            assert!(!works && finding.contains(why), "{finding}");
        }
        let (works, finding) = judged(&Info { abi: ABI + 1, ..info }, Some(rule));
        assert!(!works && finding.contains("install the same version of both"), "{finding}");
    }
}
